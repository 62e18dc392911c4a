"""Keys and scopes, hosts and origins, and the guard of the dashboard."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.settings import is_loopback
from storage.keys import KeyStore
from tests.rest_service import SPEC, app_on, calling, settings

ORDER = ("read", "submit", "admin")


async def dashboard(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"dashboard {scope['method']} {scope['path']}")(scope, receive, send)


@pytest.fixture(params=[True, False], ids=["loopback", "elsewhere"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    with calling(create_app(settings(tmp_path, loopback=request.param), dashboard)) as client:
        yield client


@pytest.fixture
def local(tmp_path: Path) -> Iterator[TestClient]:
    with calling(create_app(settings(tmp_path), dashboard)) as client:
        yield client


def make_key(client: TestClient, scope: str) -> str:
    return KeyStore(client.app.state.database).create(scope, [scope])[1]  # type: ignore[attr-defined]


def basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{secret}".encode()).decode()


def needs(method: str, path: str) -> str | None:
    if path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        return None
    if method == "GET":
        return "read"
    return "submit" if path.startswith("/v1") else "admin"


@pytest.mark.parametrize("form", ["Bearer", "Basic"])
@pytest.mark.parametrize("scope", [None, *ORDER])
def test_every_path_needs_its_scope_once_there_are_keys(scope: str | None, form: str, client: TestClient) -> None:
    secrets = {name: make_key(client, name) for name in ORDER}
    key = secrets.get(scope or "")
    job = client.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {secrets['admin']}"}).json()["id"]
    client.post(f"/v1/jobs/{job}/cancel", headers={"Authorization": f"Bearer {secrets['admin']}"})  # ends its events
    requests = [("GET", path) for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/metrics", "/v1/jobs")]
    requests += [("GET", "/dashboard"), ("GET", "/"), ("GET", "/api/studies"), ("DELETE", "/api/studies/1")]
    requests += [("POST", f"/v1/jobs/{job}/{action}") for action in ("pause", "resume", "cancel")]
    requests += [("GET", f"/v1/jobs/{job}/{part}") for part in ("events", "evaluations")]
    headers = {} if key is None else {"Authorization": f"Bearer {key}" if form == "Bearer" else basic(key)}
    for method, path in requests:
        needed = needs(method, path)
        response = client.request(method, path, headers=headers)
        if needed is None or (scope is not None and ORDER.index(scope) >= ORDER.index(needed)):
            assert response.status_code in (200, 409), (method, path)
        else:
            assert response.status_code == (401 if scope is None else 403), (method, path)
            assert response.headers["content-type"] == "application/problem+json"


def test_loopback_needs_no_key_before_there_is_one(local: TestClient) -> None:
    assert local.post("/v1/jobs", json=SPEC).status_code == 201
    assert local.get("/dashboard").text == "dashboard GET /dashboard"
    for method in ("POST", "PUT", "PATCH", "DELETE", "ODD"):
        response = local.request(method, "/api/studies/1")
        assert response.status_code == 403
        assert "keys create" in response.json()["detail"]


def test_elsewhere_needs_a_key_always(tmp_path: Path) -> None:
    with calling(create_app(settings(tmp_path, loopback=False), dashboard)) as client:
        for path in ("/v1/jobs", "/dashboard", "/metrics"):
            assert client.get(path).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_a_wrong_or_revoked_key_is_refused_even_where_none_is_needed(local: TestClient) -> None:
    for authorization in ("Bearer fs_wrong", basic("fs_wrong"), "Bearer", "Basic ???", "Digest x", "Basic 4pi6", ""):
        assert local.get("/v1/jobs", headers={"Authorization": authorization}).status_code == 401, authorization
    secret = make_key(local, "read")
    keys = KeyStore(local.app.state.database)  # type: ignore[attr-defined]
    keys.revoke(keys.list()[0].id)
    assert local.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    assert local.get("/v1/jobs").status_code == 401, "revoking the last key does not open the server"


def test_browsers_are_asked_for_a_password_and_programs_for_a_key(client: TestClient) -> None:
    make_key(client, "read")
    assert client.get("/dashboard").headers["www-authenticate"].startswith("Basic ")
    assert client.get("/v1/jobs").headers["www-authenticate"] == "Bearer"
    page = client.get("/v1/jobs/x/report", headers={"Accept": "text/html,*/*"})
    assert page.headers["www-authenticate"].startswith("Basic ")


def test_who_submitted_is_recorded(local: TestClient) -> None:
    secret = make_key(local, "submit")
    local.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {secret}"})
    database = local.app.state.database  # type: ignore[attr-defined]
    with database.reading() as connection:
        by = connection.exec_driver_sql("SELECT submitted_by FROM jobs").scalar_one()
    assert by == KeyStore(database).list()[0].id


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:1", ""]
)
def test_a_loopback_server_is_not_called_by_other_names(host: str, local: TestClient) -> None:
    response = local.get("/v1/jobs", headers={"Host": host})
    assert (response.status_code, response.headers["content-type"]) == (421, "application/problem+json")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8400", "127.0.0.1:1", "127.9.9.9", "[::1]:8400", "a.localhost"]
)
def test_names_of_loopback(host: str, local: TestClient) -> None:
    assert local.get("/v1/jobs", headers={"Host": host}).status_code == 200
    assert is_loopback(host.rpartition(":")[0] if host.count(":") == 1 else host.partition("]")[0])


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
    ],
)
def test_pages_of_other_origins_change_nothing(headers: dict[str, str], allowed: bool, local: TestClient) -> None:
    response = local.post("/v1/jobs", json=SPEC, headers=headers)
    assert response.status_code == (201 if allowed else 403)
    assert local.get("/v1/jobs", headers=headers).status_code == 200
    admin = make_key(local, "admin")
    for authorization, status in ((basic(admin), 200 if allowed else 403), (f"Bearer {admin}", 200)):
        answer = local.delete("/api/studies/1", headers={"Authorization": authorization, **headers})
        assert answer.status_code == status


def test_the_dashboard_gets_what_is_not_ours(local: TestClient) -> None:
    for path in ("/", "/dashboard", "/v1jobs", "/healthz2", "/static/x.js", "/docs.js"):
        assert local.get(path).text == f"dashboard GET {path}"
    for path in ("/v1", "/v1/x", "/healthz/x"):
        assert local.get(path).headers["content-type"] == "application/problem+json"


def test_the_dashboard_gets_no_large_or_endless_bodies(local: TestClient) -> None:
    admin = {"Authorization": f"Bearer {make_key(local, 'admin')}"}
    assert local.post("/api/x", content=b"x" * 2**21, headers=admin).status_code == 413
    assert local.post("/api/x", content=(b"x" for _ in range(2)), headers=admin).status_code == 411
    assert local.post("/api/x", content=b"x", headers=admin).status_code == 200


def test_without_a_dashboard_there_is_nothing_there(tmp_path: Path) -> None:
    with calling(app_on(tmp_path)) as client:
        assert (client.get("/dashboard").status_code, client.delete("/api/studies/1").status_code) == (404, 404)
