"""Keys and scopes, hosts and origins, and the guard of the dashboard."""

import base64
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from api.access import FORWARDING, FORWARDING_PREFIXES
from api.app import create_app
from api.key_ring import network_of
from api.settings import is_loopback
from storage.keys import KeyStore
from tests.rest_service import SPEC, app_on, calling, settings

ORDER = ("read", "submit", "admin")
PAGE = ("/", "/submit", "/compare", f"/jobs/{'0' * 24}", f"/plans/p{'0' * 24}", "/page/any/app.js")
"""The page and its files, which reveal nothing."""


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
    if path in ("/healthz", "/readyz", "/openapi.json", "/docs", *PAGE):
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
    requests += [("GET", "/dashboard"), ("GET", "/api/studies"), ("DELETE", "/api/studies/1")]
    requests += [("GET", path) for path in PAGE]
    requests += [("POST", f"/v1/jobs/{job}/{action}") for action in ("pause", "resume", "cancel")]
    requests += [("GET", f"/v1/jobs/{job}/{part}") for part in ("events", "evaluations", "course", "downloads")]
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
def test_by_another_name_a_loopback_server_needs_a_key(host: str, local: TestClient) -> None:
    for path in ("/v1/jobs", "/dashboard", "/metrics"):
        assert local.get(path, headers={"Host": host}).status_code == 401
    refused = local.post("/v1/jobs", json=SPEC, headers={"Host": host})
    assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
    assert "Host" in refused.json()["detail"]
    admin = {"Host": host, "Authorization": f"Bearer {make_key(local, 'admin')}"}
    assert local.get("/v1/jobs", headers=admin).json()["jobs"] == []


@pytest.mark.parametrize("name", [*FORWARDING, *(f"{prefix}for" for prefix in FORWARDING_PREFIXES)])
def test_through_a_proxy_a_loopback_server_needs_a_key(name: str, local: TestClient) -> None:
    """Whatever is in the header, and however its name is spelled."""
    for value in ("127.0.0.1", "for=127.0.0.1", "", "10.1.2.3, 127.0.0.1"):
        for spelled in (name, name.upper(), name.title()):
            refused = local.get("/v1/jobs", headers={spelled: value})
            assert refused.status_code == 401
            assert f"the header {name}" in refused.json()["detail"]
    assert local.get("/healthz", headers={name: "x"}).status_code == 200
    assert local.get("/v1/jobs").status_code == 200
    key = {"Authorization": f"Bearer {make_key(local, 'read')}"}
    assert local.get("/v1/jobs", headers={name: "10.1.2.3", **key}).status_code == 200


def test_wrong_keys_are_slowed_and_right_ones_are_not(local: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.key_ring.WRONG_KEY_SECONDS", 0.5)
    right = {"Authorization": f"Bearer {make_key(local, 'read')}"}
    wrong = {"Authorization": "Bearer fs_wrong"}

    def seconds(headers: dict[str, str], status: int) -> float:
        started = time.monotonic()
        assert local.get("/v1/jobs", headers=headers).status_code == status
        return time.monotonic() - started

    at_once = min(seconds(wrong, 401) for _ in range(3))
    assert seconds(wrong, 401) >= max(0.5, at_once)
    with ThreadPoolExecutor(40) as threads:  # all from one address, as behind a proxy
        asked = [threads.submit(local.get, "/v1/jobs", headers=wrong) for _ in range(40)]
        assert seconds(right, 200) < 5
        assert local.get("/healthz").status_code == 200
        answers = [one.result() for one in asked]
    assert {answer.status_code for answer in answers} <= {401, 429}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)


def test_many_who_ask_at_a_time_cost_one_look_at_the_keys(local: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, real = [], KeyStore.by_hash

    def slow(store: KeyStore) -> Any:
        looks.append(1)
        time.sleep(0.2)
        return real(store)

    monkeypatch.setattr(KeyStore, "by_hash", slow)
    right = {"Authorization": f"Bearer {make_key(local, 'read')}"}
    with ThreadPoolExecutor(30) as threads:
        asked = [threads.submit(local.get, "/v1/jobs", headers=right) for _ in range(30)]
        assert {one.result().status_code for one in asked} == {200}
    assert 1 <= len(looks) <= 10


def test_networks_of_addresses_are_counted_as_one() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::1") != network_of("2001:db8:1:3::1")
    assert network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("testclient") == "testclient"


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json", "/v1/jobs", "/v1/x", "/dashboard", "/metrics"])
def test_pages_are_safe_in_browsers(path: str, local: TestClient) -> None:
    headers = local.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "script-src" not in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_page_of_the_description_loads_nothing(local: TestClient) -> None:
    page = local.get("/docs").text
    assert "<script" not in page
    assert not re.search(r"(src|srcset|data|action|integrity)\s*=|@import|url\(", page.partition("</head>")[0])
    assert set(re.findall(r'href="([^"#]*)', page)) == {"/", "/openapi.json", ""}
    document = local.get("/openapi.json").json()
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors


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
    for path in ("/dashboard", "/v1jobs", "/healthz2", "/static/x.js", "/docs.js", "/pages", "/jobs2", "/submit.js"):
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
