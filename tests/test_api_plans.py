"""Plans over HTTP, in the client and on the command line: refused with the reason, watched to their end."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from api.cli import main
from api.client import Client, ConflictError
from factor_search.files.reading import WalkLimit, reading_rules
from factor_search.plan.spec import parse_plan
from factor_search.spec import ModelSpec, parse_spec
from storage.database import Database
from storage.plan_steps import PlanSteps
from storage.plans import PlanStore
from tests.conftest import save_checkpoint
from tests.families import tiny_model
from tests.plans import plan_document, stages
from tests.rest_service import PLAN, SPEC, FakeCoordinator, app_on, calling, serving, settings
from tests.test_plan_checkpoint import awaiting
from tests.test_plans import PlanService
from workers.policy import AT_SUBMISSION, Policy

AWAITING = [{"kind": "await_checkpoint", "name": "tuned"}, {"kind": "export"}]


def anything(folder: Path) -> Policy:
    return Policy((Path("/"),), allow_hub=False, allow_remote_code=False, work_folder=folder / "made")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with calling(app_on(tmp_path, policy=anything(tmp_path))) as client:
        yield client


def refused(client: TestClient, document: dict[str, Any], status: int = 422) -> dict[str, Any]:
    response = client.post("/v1/plans", json=document)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    return problem


@pytest.mark.parametrize(
    ("changes", "pointer", "reason"),
    [
        ({"stages": [{"kind": "search", "target_length": 0}]}, "#/stages/0/target_length", "greater than 0"),
        ({"stages": [{"kind": "search", "target_length": 128, "budge": 1}]}, "#/stages/0/budge", "unknown key"),
        ({"stages": [{"kind": "search"}]}, "#/stages/0/target_length", "Field required"),
        ({"stages": [{"kind": "guess"}]}, "#/stages/0", "guess"),
        ({"stages": [{"kind": "readjust"}]}, "#", "nothing to readjust"),
        (
            {"stages": [{"kind": "search", "target_length": 128, "model": "t"}, {"kind": "finetune", "name": "t"}]},
            "#",
            "cycle: search-1 -> t -> search-1",
        ),
        (
            {"stages": [{"kind": "search", "target_length": 256}, {"kind": "search", "target_length": 128}]},
            "#",
            "lengths must grow",
        ),
        ({"stages": []}, "#/stages", "at least 1"),
        ({"seeds": 1}, "#/seeds", "unknown key"),
    ],
)
def test_a_bad_plan_is_refused_with_its_place_and_reason(
    changes: dict[str, Any], pointer: str, reason: str, client: TestClient, checkpoint: Path, texts: Path
) -> None:
    problem = refused(client, plan_document(checkpoint, texts) | changes)
    assert problem["errors"][0]["pointer"] == pointer
    assert reason in problem["errors"][0]["detail"]
    assert reason in problem["detail"]
    assert client.get("/v1/plans").json()["plans"] == []


def test_what_cannot_end_well_is_refused_at_once(
    client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    document = plan_document(checkpoint, texts)
    missing = str(tmp_path / "none" / "*.txt")
    assert "no file matches" in refused(client, document | {"training_files": [missing]})["detail"]
    assert "no file matches" in refused(client, document | {"data": [missing]})["detail"]
    short = [stages()[0] | {"target_length": 64}]
    assert "not above the model's original length of 64" in refused(client, document | {"stages": short})["detail"]
    assert "the hub is not allowed" in refused(client, PLAN)["detail"]


def test_a_plan_may_not_touch_more_than_a_job(tmp_path: Path, checkpoint: Path, texts: Path) -> None:
    document = plan_document(checkpoint, texts)
    inside = Policy((checkpoint, texts), allow_hub=False, allow_remote_code=False, work_folder=tmp_path / "made")
    with calling(app_on(tmp_path, policy=inside)) as client:
        assert client.post("/v1/plans", json=document).status_code == 201
        outside = [str(tmp_path / "secret.txt")]
        (tmp_path / "secret.txt").write_text("secret")
        assert "training_files: " in refused(client, document | {"training_files": outside})["detail"]
        assert "data.files: " in refused(client, document | {"data": outside})["detail"]
        code = {"model": {"id": str(checkpoint), "trust_remote_code": True}}
        assert "trust_remote_code" in refused(client, document | code)["detail"]
    without = Policy((Path("/"),), allow_hub=False, allow_remote_code=False)
    with calling(app_on(tmp_path, policy=without)) as client:
        assert "serve --work DIR" in refused(client, document)["detail"]


def test_jobs_and_plans_have_routes_of_their_own(client: TestClient, checkpoint: Path, texts: Path) -> None:
    assert "a single search goes to /v1/jobs" in refused(client, SPEC)["detail"]
    plan = plan_document(checkpoint, texts)
    answer = client.post("/v1/jobs", json=plan)
    assert (answer.status_code, "go to /v1/plans" in answer.json()["detail"]) == (422, True)
    for path in ("/v1/plans/nothing", f"/v1/plans/p{'0' * 24}", f"/v1/plans/{'0' * 24}"):
        assert client.get(path).status_code == 404


def test_what_a_plan_has_made_may_be_used_by_a_job(tmp_path: Path, checkpoint: Path) -> None:
    made = shutil.copytree(checkpoint, tmp_path / "made" / "finetune-1" / "model")
    policy = Policy((tmp_path / "root",), allow_hub=False, allow_remote_code=False, work_folder=tmp_path / "made")
    policy.check_model(ModelSpec(id=str(made)))
    for elsewhere in (checkpoint, tmp_path / "made" / ".." / "root2"):
        with pytest.raises(Exception, match="not in a folder that jobs may use"):
            policy.check_model(ModelSpec(id=str(elsewhere)))
    with pytest.raises(Exception, match="not in a folder"):
        policy.check_supplied_checkpoint(str(made))


def test_a_request_searches_folders_no_longer_than_a_submission(
    client: TestClient, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, searched = awaiting(checkpoint), list[WalkLimit]()
    note: Callable[..., Any] = lambda *_: searched.append(reading_rules().walk)  # noqa: E731
    monkeypatch.setattr("workers.policy.checkpoint_files", note)
    monkeypatch.setattr("api.deferred.engine_document", note)
    monkeypatch.setattr("api.deferred.check_checkpoint", note)
    with FakeCoordinator(settings(tmp_path).database_url) as store:
        spec = {"model": str(checkpoint), "data": "a.txt", "target_length": 128}
        job, _ = store.jobs.submit(parse_spec(spec))
        store.finish(store.claim(), work.factors)
        plans, steps = PlanStore(store.database), PlanSteps(store.database)
        plan, _ = plans.submit(name="p", spec=PLAN, stages=[("tuned", "await_checkpoint")])
        assert steps.wait(plan, work.model_dump(mode="json"))
    assert client.get(f"/v1/jobs/{job.id}/factors", params={"format": "huggingface"}).status_code == 200
    client.post(f"/v1/plans/{plan.id}/checkpoint", json={"model": str(checkpoint)})
    assert searched == [AT_SUBMISSION] * 4


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    said = capsys.readouterr()
    return status, said.out.strip(), said.err


def test_a_plan_on_the_command_line(
    tmp_path: Path, checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_checkpoint(tiny_model("qwen2", vocab_size=257), tmp_path / "other")
    document = plan_document(checkpoint, texts, stages=[stages()[0], *AWAITING])
    (tmp_path / "plan.json").write_text(json.dumps(document))
    service = PlanService(tmp_path)
    try:
        with serving(app_on(tmp_path, policy=anything(tmp_path))) as url:
            monkeypatch.setenv("FACTOR_SEARCH_URL", url)
            status, plan_id, said = run(capsys, "submit", str(tmp_path / "plan.json"))
            assert (status, "no coordinator is running" in said) == (0, True)
            assert run(capsys, "pause", plan_id[:20])[1] == f"plan {plan_id} is paused"
            assert run(capsys, "watch", plan_id)[0] == 4
            assert run(capsys, "resume", plan_id)[1].startswith(f"plan {plan_id} is queued")
            service.begin()
            status, _, said = run(capsys, "watch", plan_id)
            assert status == 5, said
            assert f"factor-search supply-checkpoint {plan_id} FOLDER" in said
            assert "generation" in said
            status, _, said = run(capsys, "supply-checkpoint", plan_id, str(other))
            assert (status, "is a Qwen2ForCausalLM, but the plan's model is a LlamaForCausalLM" in said) == (1, True)
            broken = tmp_path / "broken"
            shutil.copytree(checkpoint, broken)
            weights = load_file(broken / "model.safetensors")
            del weights["model.norm.weight"]
            save_file(weights, broken / "model.safetensors", {"format": "pt"})
            assert run(capsys, "supply-checkpoint", plan_id, str(broken))[0] == 0, "only a worker loads its weights"
            service.until(plan_id, "waiting")
            status, _, said = run(capsys, "watch", plan_id)
            assert (status, "checkpoint refused: " in said) == (5, True), said
            status, _, said = run(capsys, "retry", plan_id)
            assert (status, "only one that has ended" in said) == (1, True)
            assert plan_id in run(capsys, "plans", "--state", "waiting")[1]
            assert run(capsys, "supply-checkpoint", plan_id, str(checkpoint))[1] == f"plan {plan_id} is running"
            status, _, said = run(capsys, "watch", plan_id)
            assert status == 0, said
            with Client(url) as client:
                check_results(client, plan_id, checkpoint)
            status, out, said = run(capsys, "download", plan_id, "--out", str(tmp_path / "results"))
            assert status == 0, said
            names = {Path(line).name for line in out.splitlines()}
            assert names == {"report.json", "report.html", "factors.json"}
            assert "export-1: " in said
            assert run(capsys, "cancel", plan_id)[0] == 1
    finally:
        service.stop()
        service.database.close()


def check_results(client: Client, plan_id: str, checkpoint: Path) -> None:
    plan = client.plans.get(plan_id)
    assert [stage.state for stage in plan.stages] == ["finished"] * 3
    job = client.jobs.get(str(plan.stages[0].job))
    assert (job.plan, job.stage, job.kind) == (plan_id, "search-1", "search")
    assert client.jobs.factors(job.id) == client.plans.factors(plan_id)
    assert plan.stages[1].model == str(checkpoint.resolve())
    exported = client.jobs.get(str(plan.stages[2].job))
    with pytest.raises(ConflictError, match="is not a search"):
        client.jobs.report(exported.id)
    with pytest.raises(ConflictError, match="pause, resume or cancel the plan"):
        client.jobs.pause(exported.id)
    report = client.plans.report(plan_id)
    assert [stage["status"] for stage in report["stages"]] == ["finished"] * 3
    assert "<svg" in client.plans.report_html(plan_id)
    kinds = [event.kind for event in client.plans.events(plan_id)]
    assert (kinds[0], kinds[-1]) == ("submitted", "finished")


def test_a_stream_continues_after_an_end_that_was_taken_back(tmp_path: Path, client: TestClient) -> None:
    with calling(app_on(tmp_path)) as open_to_the_hub:
        plan_id = open_to_the_hub.post("/v1/plans", json=PLAN).json()["id"]
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        steps, plans = PlanSteps(database), PlanStore(database)
        steps.fail(plans.get(plan_id), "no reason")
        first = client.get(f"/v1/plans/{plan_id}/events").text
        plans.retry(plan_id)
        plans.cancel(plan_id)
    whole = client.get(f"/v1/plans/{plan_id}/events").text
    assert [line for line in first.splitlines() if line.startswith("event")] == ["event: submitted", "event: failed"]
    kinds = [line.partition(": ")[2] for line in whole.splitlines() if line.startswith("event")]
    assert kinds == ["submitted", "failed", "retried", "cancelled"]
    assert parse_plan(client.get(f"/v1/plans/{plan_id}").json()["spec"]).recipe is None
