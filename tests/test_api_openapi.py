"""The description is valid OpenAPI, and what the server answers is what the description says."""

import json
import re
import shlex
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from api.cli import main
from api.description_page import example_request
from factor_search.errors import SpecError
from factor_search.plan.kinds.search import SearchWork
from factor_search.plan.spec import parse_plan
from factor_search.spec import parse_spec
from storage.database import Database
from storage.jobs import JobStore
from storage.plan_steps import PlanSteps
from storage.plans import PlanStore
from tests.rest_service import PLAN, SPEC, FakeCoordinator, app_on, calling, settings

META = "https://json-schema.org/draft/2020-12/schema"


class Described:
    """A client that compares each answer with the description."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.document = client.get("/openapi.json").json()
        self.answered: set[tuple[str, str, str]] = set()

    def request(self, method: str, path: str, **options: Any) -> Any:
        response = self.client.request(method, path, **options)
        template, operation = self.operation(method, path)
        answer = operation["responses"][str(response.status_code)]
        kind = response.headers.get("content-type", "").partition(";")[0]
        if response.status_code == 204:
            assert "content" not in answer
            return response
        assert kind in answer["content"], (template, response.status_code, kind)
        if kind.endswith("json"):
            self.validate(response.json(), answer["content"][kind]["schema"])
        self.answered.add((method, template, str(response.status_code)))
        return response

    def operation(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        for template, operations in self.document["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path.partition("?")[0]):
                return template, operations[method.lower()]
        raise AssertionError(f"{path} is not described")

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        whole = {"$schema": META, "components": self.document["components"], **schema}
        jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Described]:
    with calling(app_on(tmp_path)) as client:
        yield Described(client)


@pytest.fixture(scope="module")
def result(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Specification, factors and report of a real search."""
    folder = tmp_path_factory.mktemp("result")
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    spec = {"model": str(checkpoint), "data": data, "target_length": 128, "space": {"initial_tokens": [0]}, "budget": 8}
    (folder / "job.json").write_text(json.dumps(spec))
    assert main(["run", str(folder / "job.json"), "--out", str(folder / "out"), "--json"]) == 0
    read = {name: json.loads((folder / "out" / f"{name}.json").read_text()) for name in ("factors", "report")}
    return {"spec": spec, "model": checkpoint, **read}


def test_every_reference_leads_somewhere_and_every_schema_is_one(service: Described) -> None:
    document = service.document
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert "HTTPValidationError" not in json.dumps(document)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"], parameter


def test_every_operation_has_examples_that_are_as_described(service: Described) -> None:
    page = service.client.get("/docs").text
    for path, operations in service.document["paths"].items():
        for method, operation in operations.items():
            command = example_request(method, path, operation)
            assert escape(command) in page
            words = shlex.split(command)
            template, found = service.operation(method.upper(), words[-1].removeprefix("http://127.0.0.1:8400"))
            assert (template, found) == (path, operation), "the command reaches the operation"
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                service.validate(content["example"], content["schema"])
                assert json.loads(words[words.index("--data") + 1]) == content["example"]
            good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            contents = [(kind, one) for answer in good for kind, one in answer.get("content", {}).items()]
            for kind, content in contents:
                if kind != "text/html":
                    service.validate(content["example"], content["schema"])
            assert contents or method == "delete"
        problem = operations[method]["responses"].get("422", {}).get("content", {}).get("application/problem+json")
        if problem is not None:
            service.validate(problem["example"], problem["schema"])


def test_the_example_of_a_specification_is_one(service: Described) -> None:
    schemas = service.document["components"]["schemas"]
    for example in schemas["JobSpec"]["examples"]:
        service.validate(example, schemas["JobSpec"])
        parse_spec(example)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SPEC | {"data": "x.txt", "budget": 7, "objective": "perplexity", "strategy": "evolution"},
        SPEC | {"data": ["x.txt"], "strategy": {"kind": "evolution", "population": 8}, "budget": {"seconds": 1.5}},
        SPEC | {"space": {"attention_factor": 1.5}, "seed": 2**53 - 1},
        SPEC | {"warm_start": {"jobs": ["a"], "factors": [{"source": "b", "rescale_factors": [1.5], "scale": 4}]}},
        SPEC | {"warm_start": {"factors": [{"source": "b", "rescale_factors": [0]}]}},
        SPEC | {"budget": {"candidates": None, "no_improvement": 50}},
        SPEC | {"target_length": 0},
        SPEC | {"seed": 2**53},
        SPEC | {"unknown": 1},
        SPEC | {"model": 5},
        SPEC | {"model": {"id": ""}},
        SPEC | {"strategy": {"kind": "guess"}},
        SPEC | {"space": {"step": 0}},
        SPEC | {"space": {"initial_tokens": []}},
        {},
    ],
)
def test_the_described_specification_is_the_accepted_one(spec: dict[str, Any], service: Described) -> None:
    schema = {"$ref": "#/components/schemas/JobSpec"}
    try:
        parse_spec(spec)
    except SpecError:
        with pytest.raises(jsonschema.ValidationError):
            service.validate(spec, schema)
    else:
        service.validate(spec, schema)


def test_answers_are_as_described(service: Described, tmp_path: Path, result: dict[str, Any]) -> None:
    request = service.request
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        coordinator.database.close()
        job = request("POST", "/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()["id"]
        request("POST", "/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"})
        request("POST", "/v1/jobs", json=SPEC | {"seed": 1}, headers={"Idempotency-Key": "k"})
        request("POST", "/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})
        request("POST", "/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
        request("POST", "/v1/jobs", content=b" " * 2**21, headers={"Content-Type": "application/json"})
        request("POST", "/v1/jobs", json={})
        for document in (SPEC, PLAN, {}):
            request("POST", "/v1/estimate", json=document)
        request("POST", "/v1/estimate", content=b"{", headers={"Content-Type": "application/json"})
        request("POST", "/v1/estimate", content=b"{}", headers={"Content-Type": "text/plain"})
        for action in ("pause", "resume", "cancel"):
            request("POST", f"/v1/jobs/{'0' * 24}/{action}")
        request("POST", f"/v1/jobs/{job}/pause")
        request("POST", f"/v1/jobs/{job}/resume")
        request("GET", f"/v1/jobs/{job}/factors")
        request("GET", f"/v1/jobs/{job}/report")
        lease = coordinator.claim()
        coordinator.generation(lease, 0)
        for path in ("/v1/jobs", "/v1/jobs?limit=0", f"/v1/jobs/{job}", f"/v1/jobs/{'0' * 24}"):
            request("GET", path)
        for part in ("events", "evaluations", "factors", "report"):
            request("GET", f"/v1/jobs/{'0' * 24}/{part}")
        request("GET", f"/v1/jobs/{job}/evaluations")
        ask_what_the_page_asks(service, job)
        request("GET", f"/v1/jobs/{job}/evaluations?after=-2")
        coordinator.finish(lease, result["factors"], result["report"])
        for path in ("factors", "report", "report?format=html", "events", "events?after=4", "events?after=5"):
            request("GET", f"/v1/jobs/{job}/{path}")
        for action in ("pause", "resume", "cancel"):
            request("POST", f"/v1/jobs/{job}/{action}")
    ask_about_plans(service, tmp_path, result)
    ask_about_storage(service, job)
    for path in ("/healthz", "/readyz", "/metrics"):
        request("GET", path)
    for submitted in ("/v1/jobs", "/v1/plans"):
        statuses = {status for _, path, status in service.answered if path == submitted}
        assert statuses == {"200", "201", "400", "409", "413", "415", "422"}
    described = {(m.upper(), path) for path, operations in service.document["paths"].items() for m in operations}
    assert described == {(method, path) for method, path, _ in service.answered}


def ask_what_the_page_asks(service: Described, job: str) -> None:
    other = service.request("POST", "/v1/jobs", json=SPEC | {"seed": 2}).json()["id"]
    for query in ("", "?after=2", "?limit=0"):
        service.request("GET", f"/v1/jobs/{job}/course{query}")
    service.request("GET", f"/v1/jobs/{job}/downloads")
    for part in ("course", "downloads"):
        service.request("GET", f"/v1/jobs/{'0' * 24}/{part}")
    for jobs in (f"{job},{other}", job, f"{job},{'0' * 24}"):
        service.request("GET", f"/v1/compare?jobs={jobs}")


def ask_about_plans(service: Described, folder: Path, result: dict[str, Any]) -> None:
    request, unknown, json_type = service.request, "p" + "0" * 24, {"Content-Type": "application/json"}
    plan = request("POST", "/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"}).json()["id"]
    request("POST", "/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    request("POST", "/v1/plans", json=PLAN | {"seed": 1}, headers={"Idempotency-Key": "k"})
    request("POST", "/v1/plans", content=b"{", headers=json_type)
    request("POST", "/v1/plans", content=b"{}", headers={"Content-Type": "text/plain"})
    request("POST", "/v1/plans", content=b" " * 2**21, headers=json_type)
    request("POST", "/v1/plans", json=SPEC)
    for action in ("pause", "resume", "cancel", "retry"):
        request("POST", f"/v1/plans/{unknown}/{action}")
        request("POST", f"/v1/plans/{plan}/{action}")
    request("POST", f"/v1/plans/{plan}/retry", json={"stage": "nonsense"})
    request("POST", f"/v1/plans/{plan}/retry", json={"stages": 1})
    for known in (unknown, plan):
        request("POST", f"/v1/plans/{known}/checkpoint", json={"model": str(folder)})
        for part in ("", "/events?after=9", "/factors", "/report"):
            request("GET", f"/v1/plans/{known}{part}")
    request("POST", f"/v1/plans/{plan}/checkpoint", json={"model": ""})
    with Database(settings(folder).database_url) as database:
        steps, store = PlanSteps(database), PlanStore(database)
        work = SearchWork(stage="search-1", job=parse_spec(result["spec"])).model_dump(mode="json")
        outcome = {"model": None, "factors": result["factors"], "report": result["report"]}
        job = database_job(database, result)
        steps.reuse(store.get(plan), work=work, job_id=job, outcome=outcome)
    for path in ("", "/factors", "/factors?stage=export-1", "/report", "/report?format=html"):
        request("GET", f"/v1/plans/{plan}{path}")
    request("POST", f"/v1/plans/{plan}/cancel")
    seen = len(re.findall("^data:", request("GET", f"/v1/plans/{plan}/events").text, re.MULTILINE))
    request("GET", f"/v1/plans/{plan}/events?after={seen}")
    for query in ("", "?limit=0", "?state=cancelled"):
        request("GET", f"/v1/plans{query}")


def ask_about_storage(service: Described, job: str) -> None:
    request = service.request
    (plan,) = [one["id"] for one in request("GET", "/v1/plans").json()["plans"]]
    for path in ("", "?limit=0", "?limit=1"):
        request("GET", f"/v1/storage{path}")
    for asked in ({"older_than_days": 0, "dry_run": True}, {"older_than_days": -1}, {}):
        request("POST", "/v1/storage/prune", json=asked)
    for word, known in (("job", job), ("plan", plan)):
        unknown = known[:-2] + "00"
        for asked in ({"name": "for the paper"}, {"name": None}, {"name": 1}):
            request("POST", f"/v1/{word}s/{known}/keep", json=asked)
        request("POST", f"/v1/{word}s/{unknown}/keep", json={"name": None})
        assert request("DELETE", f"/v1/{word}s/{known}").status_code == 204
        assert request("DELETE", f"/v1/{word}s/{known}").status_code == 404


def database_job(database: Database, result: dict[str, Any]) -> str:
    return JobStore(database).submit(parse_spec(result["spec"]))[0].id


def test_a_request_that_announces_a_large_body_is_answered_as_described(service: Described) -> None:
    headers = {"Content-Length": str(2**21), "Content-Type": "application/json"}
    for template, operations in service.document["paths"].items():
        path = re.sub(r"\{\w+\}", "0" * 24, template)
        for method in operations:
            assert service.request(method.upper(), path, content=b"", headers=headers).status_code == 413
    assert "429" in service.document["paths"]["/metrics"]["get"]["responses"], "for wrong keys"


def test_the_example_of_a_plan_is_one(service: Described) -> None:
    schemas = service.document["components"]["schemas"]
    for plan in (*schemas["PlanSpec"]["examples"], PLAN):
        service.validate(plan, schemas["PlanSpec"])
        service.validate(parse_plan(plan).expanded().model_dump(mode="json"), schemas["PlanSpec"])


def test_events_are_as_described(service: Described) -> None:
    job = service.client.post("/v1/jobs", json=SPEC).json()["id"]
    service.client.post(f"/v1/jobs/{job}/cancel")
    text = service.client.get(f"/v1/jobs/{job}/events").text
    events = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    assert len(events) == 2
    for data in events:
        service.validate(json.loads(data), {"$ref": "#/components/schemas/Event"})


def test_results_of_a_real_search(service: Described, tmp_path: Path, result: dict[str, Any]) -> None:
    changes = {"model": str(result["model"])}
    store = FakeCoordinator(settings(tmp_path).database_url)
    with store:
        job, _ = store.jobs.submit(parse_spec(result["spec"] | changes))
        store.finish(store.claim(), result["factors"], result["report"])
    get = service.client.get
    assert get(f"/v1/jobs/{job.id}/factors").json() == result["factors"]
    assert get(f"/v1/jobs/{job.id}/report").json() == result["report"]
    for page in (
        get(f"/v1/jobs/{job.id}/report", params={"format": "html"}),
        get(f"/v1/jobs/{job.id}/report", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}),
    ):
        assert page.headers["content-type"].startswith("text/html")
        assert "<svg" in page.text
    assert get(f"/v1/jobs/{job.id}/report", headers={"Accept": "application/json"}).json() == result["report"]
    outside = get(f"/v1/jobs/{job.id}/factors", params={"format": "huggingface"})
    assert outside.status_code == 422, "the model lies outside the roots of this server"


def test_factors_as_a_huggingface_configuration(tmp_path: Path, result: dict[str, Any]) -> None:
    from workers.policy import Policy

    policy = Policy((Path(result["model"]),), allow_hub=False, allow_remote_code=False)
    with calling(app_on(tmp_path, policy=policy)) as client, FakeCoordinator(settings(tmp_path).database_url) as store:
        job, _ = store.jobs.submit(parse_spec(result["spec"]))
        store.finish(store.claim(), result["factors"], result["report"])
        path = f"/v1/jobs/{job.id}/factors"
        config = client.get(path, params={"format": "huggingface"}).json()
        assert config["rope_parameters"]["long_factor"] == result["factors"]["rescale_factors"]
        assert config["max_position_embeddings"] == 128
        kept = {key: value for key, value in result["factors"].items() if key != "sha256"} | {"initial_tokens": 4}
        with Database(settings(tmp_path).database_url) as database, database.writing() as connection:
            connection.exec_driver_sql("UPDATE jobs SET factors = ?", (json.dumps(kept),))
        refused = client.get(path, params={"format": "huggingface"})
        assert refused.status_code == 422
        assert "initial tokens" in refused.json()["detail"]
