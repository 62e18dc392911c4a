"""Jobs and plans are kept, deleted and aged out with all that belongs to them alone; what is in use stays."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update
from starlette.testclient import TestClient

from factor_search.measure.evaluation import FAILED, OK
from storage import evaluations, schema
from storage.dashboard.forget import forget_studies
from storage.database import Database
from storage.errors import ConflictError, NotFoundError
from storage.evaluations import Batch, EvaluationStore
from storage.job_rows import work_folder_name
from storage.jobs import JobStore, Lease
from storage.keys import KeyStore
from storage.plan_steps import PlanSteps
from storage.plans import Plan, PlanStore
from storage.retention import RetentionStore
from tests.records import candidate, computed
from tests.rest_service import PLAN, FakeCoordinator, app_on, calling
from tests.rest_service import SPEC as DOCUMENT
from tests.rest_service import settings as server_settings
from tests.test_storage import SPEC
from workers.folder_lock import LOCK, locked_folder, remove_folder
from workers.work_folders import folders_in, remove_folders, size_of

OUTCOME: dict[str, Any] = {"model": None, "factors": {"a": 1}, "report": {}}
DAY = 86_400.0


class Records:
    """All stores of a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.jobs, self.plans, self.steps = JobStore(database), PlanStore(database), PlanSteps(database)
        self.evaluations, self.retention = EvaluationStore(database), RetentionStore(database)

    def running(self) -> Lease:
        self.jobs.submit(SPEC)
        return self.claim()

    def claim(self) -> Lease:
        claim = self.jobs.claim("c", 60)
        assert claim is not None
        return claim[1]

    def searched(self, *numbers: int, reused: bool = False, end: str | None = "finished") -> str:
        """A job with these candidates."""
        lease = self.running()
        self.evaluations.start_search(lease, 512, f"study of {lease.job_id}", {})
        items = [candidate(number) for number in numbers]
        batch = Batch(done=[(item, OK, reused) for item in items])
        if not reused:
            batch.computed = [computed(item) for item in items]
        self.evaluations.record({lease: batch})
        if end is not None:
            self.jobs.end(lease, end)
        return lease.job_id

    def stage(self, plan: Plan, *, kind: str = "finetune", sha256: str = "f" * 64, model: str | None = None) -> str:
        """Do the present stage of a plan as a job; returns its id."""
        assert self.steps.queue(plan, work={"w": 1}, kind=kind, spec={"s": 1}, spec_sha256=sha256, name="stage")
        lease = self.claim()
        self.jobs.end(lease, "finished", outcome=OUTCOME | {"model": model and {"id": model}})
        assert self.steps.conclude(self.plans.get(plan.id))
        return lease.job_id

    def plan(self, stages: int = 1, **changes: Any) -> Plan:
        named = [(f"stage-{number}", "finetune") for number in range(stages)]
        values: dict[str, Any] = {"name": "p", "spec": {"s": 1}, "stages": named}
        return self.plans.submit(**values | changes)[0]

    def keys(self) -> set[str]:
        with self.database.reading() as connection:
            return set(connection.scalars(select(schema.evaluations.c.key)))

    def rows(self) -> dict[str, int]:
        with self.database.reading() as connection:
            counted = {
                table.name: connection.scalar(select(func.count()).select_from(table)) or 0
                for table in schema.metadata.sorted_tables
            }
        return {name: count for name, count in counted.items() if count}

    def age(self, id: str, days: float) -> None:
        table = schema.plans if id.startswith("p") else schema.jobs
        with self.database.writing() as connection:
            connection.execute(update(table).where(table.c.id == id).values(ended_at=table.c.ended_at - days * DAY))


class TestRetentionContract:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def records(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'jobs.db'}"
        else:
            url = request.getfixturevalue("postgresql_database")
        with Database(url) as database:
            yield Records(database)

    def test_a_deleted_job_leaves_nothing(self, records: Records) -> None:
        job = records.searched(0, 1)
        assert records.retention.delete("job", job).folders == []
        assert records.rows() == {}
        with pytest.raises(NotFoundError):
            records.retention.delete("job", job)

    @pytest.mark.parametrize("state", ["queued", "running", "paused", "asked to cancel"])
    def test_a_job_that_has_not_ended_is_not_deleted(self, records: Records, state: str) -> None:
        job, _ = records.jobs.submit(SPEC)
        if state in ("running", "asked to cancel"):
            records.claim()
        if state == "asked to cancel":
            records.jobs.cancel(job.id)
        if state == "paused":
            records.jobs.pause(job.id)
        with pytest.raises(ConflictError, match="only one that has ended can be deleted"):
            records.retention.delete("job", job.id)
        assert records.jobs.get(job.id).state == ("running" if state == "asked to cancel" else state)
        assert records.retention.due(-10 * DAY) == []

    def test_evaluations_stay_while_a_job_is_left_that_has_them(self, records: Records) -> None:
        first, second = records.searched(0, 1), records.searched(1, 2)
        third = records.searched(0, reused=True, end=None)  # it runs
        records.retention.delete("job", first)
        assert records.keys() == {candidate(number).key for number in (0, 1, 2)}
        records.retention.delete("job", second)
        assert records.keys() == {candidate(0).key}
        (row,) = records.evaluations.of_job(third)
        assert row.evaluation == computed(candidate(0)).evaluation

    def test_failures_of_one_job_go_with_it(self, records: Records) -> None:
        lease = records.running()
        records.evaluations.start_search(lease, 512, "s", {})
        item = computed(candidate(5), FAILED)
        records.evaluations.record({lease: Batch(computed=[item], done=[(candidate(5), FAILED, False)])})
        records.jobs.end(lease, "failed", error="x")
        records.retention.delete("job", lease.job_id)
        assert records.keys() == set()

    def test_an_evaluation_that_was_deleted_after_it_was_looked_up_is_stored_again(self, records: Records) -> None:
        first = records.searched(0)
        lease = records.running()
        records.evaluations.start_search(lease, 512, "s", {})
        known = records.evaluations.lookup([candidate(0).key], lease.job_id)
        records.retention.delete("job", first)
        assert records.keys() == set()
        batch = Batch(done=[(candidate(0), OK, True)], reused=list(known.values()))
        records.evaluations.record({lease: batch})
        (row,) = records.evaluations.of_job(lease.job_id)
        assert row.evaluation == known[candidate(0).key]
        records.evaluations.record({lease: batch})
        assert records.rows()["evaluations"] == 1

    def test_what_is_kept_is_not_aged_out(self, records: Records) -> None:
        old, kept, young = records.searched(0), records.searched(1), records.searched(2)
        running = records.searched(3, end=None)
        records.retention.keep("job", kept, "the one of the paper")
        for job in (old, kept):
            records.age(job, 40)
        assert [row.id for row in records.retention.due(30 * DAY)] == [old]
        with pytest.raises(ConflictError, match="kept"):
            records.retention.delete("job", kept, older_than_seconds=30 * DAY)
        with pytest.raises(ConflictError, match="too recently"):
            records.retention.delete("job", young, older_than_seconds=30 * DAY)
        shown = {row.id: row for row in records.retention.stored()}
        assert shown[kept].kept == "the one of the paper"
        assert shown.keys() == {old, kept, young, running}
        assert all(row.bytes > 500 for row in shown.values())
        records.retention.keep("job", kept, None)
        assert {row.id for row in records.retention.due(30 * DAY)} == {old, kept}
        with pytest.raises(NotFoundError):
            records.retention.keep("job", "nothing", "x")

    def test_a_plan_goes_with_its_jobs_and_frees_its_folders(self, records: Records) -> None:
        plan = records.plan(2)
        first = records.stage(plan, sha256="a" * 64)
        with pytest.raises(ConflictError, match=f"job {first} is a stage of the plan {plan.id}: delete the plan"):
            records.retention.delete("job", first)
        with pytest.raises(ConflictError, match=f"plan {plan.id} is running"):
            records.retention.delete("plan", plan.id)
        records.stage(records.plans.get(plan.id), kind="search", sha256="b" * 64)
        assert records.retention.stored()[0].folders == (work_folder_name("finetune", "a" * 64),)
        assert records.retention.delete("plan", plan.id).folders == [work_folder_name("finetune", "a" * 64)]
        assert records.rows() == {}

    def test_a_plan_whose_job_is_still_being_ended_stays(self, records: Records) -> None:
        plan = records.plan()
        assert records.steps.queue(plan, work={}, kind="finetune", spec={}, spec_sha256="x", name="n")
        lease = records.claim()
        records.plans.cancel(plan.id)
        with pytest.raises(ConflictError, match="still being ended"):
            records.retention.delete("plan", plan.id)
        records.jobs.end(lease, "cancelled")
        records.retention.delete("plan", plan.id)
        assert records.rows() == {}

    def test_a_result_that_another_plan_has_reused_stays_with_its_folder(self, records: Records) -> None:
        first, second = records.plan(), records.plan()
        job = records.stage(first, sha256="a" * 64)
        assert records.steps.reuse(second, work={}, job_id=job, outcome=OUTCOME)
        assert records.retention.delete("plan", first.id).folders == []
        left = records.jobs.get(job)
        assert (left.plan_id, left.plan_stage) == (second.id, "stage-0")
        assert records.retention.delete("plan", second.id).folders == [work_folder_name("finetune", "a" * 64)]
        assert records.rows() == {}

    @pytest.mark.parametrize("where", ["job", "plan", "work"])
    def test_a_folder_that_is_the_model_of_something_left_stays(self, records: Records, where: str) -> None:
        plan = records.plan()
        records.stage(plan, sha256="a" * 64)
        model = f"/work of ä/{work_folder_name('finetune', 'a' * 64)}/model"
        if where == "job":
            records.jobs.submit(SPEC.model_copy(update={"model": SPEC.model.model_copy(update={"id": model})}))
        elif where == "plan":
            records.plan(spec={"model": {"id": model}})
        else:
            other = records.plan()
            work = {"model": {"id": model}}
            assert records.steps.queue(other, work=work, kind="export", spec=work, spec_sha256="e" * 64, name="n")
        assert records.retention.delete("plan", plan.id).folders == []
        assert records.retention.unused([work_folder_name("finetune", "a" * 64), "finetune-" + "0" * 24]) == {
            "finetune-" + "0" * 24
        }

    def test_a_plan_that_is_retried_is_not_deleted_any_more(self, records: Records) -> None:
        plan = records.plan()
        records.steps.fail(plan, "no")
        records.age(plan.id, 40)
        assert [row.id for row in records.retention.due(30 * DAY)] == [plan.id]
        records.plans.retry(plan.id)
        with pytest.raises(ConflictError):
            records.retention.delete("plan", plan.id, older_than_seconds=30 * DAY)

    def test_a_job_that_is_deleted_is_not_reused(self, records: Records) -> None:
        first, second = records.plan(), records.plan()
        job = records.stage(first)
        assert records.steps.finished_jobs("f" * 64) != []
        records.retention.delete("plan", first.id)
        assert not records.steps.reuse(second, work={}, job_id=job, outcome=OUTCOME)
        assert (records.plans.get(second.id).state, len(records.steps.due())) == ("queued", 1)

    def test_reuse_and_deletion_at_once(self, records: Records) -> None:
        """Either the plan has reused the job, and its row and folder stay, or both are gone and it is not reused."""
        for attempt in range(8):
            folder, deleted, reused, job = at_once(records, attempt)
            assert deleted == ([] if reused else [folder])
            assert (records.retention.gone([job]) == set()) == reused

    def test_recording_and_deletion_at_once(self, records: Records) -> None:
        for attempt in range(8):
            first = records.searched(attempt)
            lease = records.running()
            records.evaluations.start_search(lease, 512, "s", {})
            known = records.evaluations.lookup([candidate(attempt).key], lease.job_id)
            batch = Batch(done=[(candidate(attempt), OK, True)], reused=list(known.values()))
            threads = [
                threading.Thread(target=records.retention.delete, args=("job", first)),
                threading.Thread(target=records.evaluations.record, args=({lease: batch},)),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (row,) = records.evaluations.of_job(lease.job_id)
            assert row.evaluation is not None

    def test_a_result_that_is_computed_again_while_its_job_is_deleted_stays(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = records.searched(0)
        lease = records.running()
        records.evaluations.start_search(lease, 512, "s", {})
        deletion = threading.Thread(target=records.retention.delete, args=("job", first))
        write = evaluations._write_evaluations

        def write_while_it_is_deleted(*arguments: Any) -> Any:
            written = write(*arguments)
            deletion.start()
            deletion.join(0.5)
            return written

        monkeypatch.setattr(evaluations, "_write_evaluations", write_while_it_is_deleted)
        items = {"computed": [computed(candidate(0))], "done": [(candidate(0), OK, False)]}
        records.evaluations.record({lease: Batch(**items)})  # type: ignore[arg-type]
        deletion.join()
        (row,) = records.evaluations.of_job(lease.job_id)
        assert row.evaluation is not None

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        numbers=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=5),
        deleted=st.sets(st.integers(0, 4)),
    )
    def test_any_deletions(self, records: Records, numbers: list[set[int]], deleted: set[int]) -> None:
        with records.database.writing() as connection:
            for table in reversed(schema.metadata.sorted_tables):
                connection.execute(table.delete())
        seen: set[int] = set()
        made = []
        for these in numbers:
            made.append(records.searched(*sorted(these - seen)))
            lease = records.running()
            records.evaluations.start_search(lease, 512, "s", {})
            records.evaluations.record({lease: Batch(done=[(candidate(n), OK, True) for n in sorted(these & seen)])})
            records.jobs.end(lease, "finished")
            made.append(lease.job_id)
            seen |= these
        gone = {number for number in deleted if number < len(numbers)}
        for number in gone:
            for job in made[2 * number : 2 * number + 2]:
                records.retention.delete("job", job)
        left = set().union(*(these for number, these in enumerate(numbers) if number not in gone), set())
        assert records.keys() == {candidate(number).key for number in left}
        assert records.rows().get("jobs", 0) == 2 * (len(numbers) - len(gone))


def at_once(records: Records, attempt: int) -> tuple[str, list[str], bool, str]:
    """Delete a plan while another reuses its job: the job's folder, what was freed, whether it was reused, the job."""
    sha256 = f"{attempt:x}" * 64
    first, second = records.plan(), records.plan()
    job = records.stage(first, sha256=sha256)
    deleted: list[list[str]] = []
    reused: list[bool] = []
    threads = [
        threading.Thread(target=lambda: deleted.append(records.retention.delete("plan", first.id).folders)),
        threading.Thread(
            target=lambda: reused.append(records.steps.reuse(second, work={}, job_id=job, outcome=OUTCOME))
        ),
    ]
    random.Random(attempt).shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (records.plans.get(second.id).state == "finished") == reused[0]
    return work_folder_name("finetune", sha256), deleted[0], reused[0], job


def test_an_sqlite_file_becomes_smaller(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with Database(f"sqlite:///{file}") as database:
        records = Records(database)
        job = records.searched(0)
        with database.writing() as connection:
            connection.execute(update(schema.jobs).values(report={"text": "x" * 5_000_000}))
        records.retention.give_space_back()
        before = file.stat().st_size
        assert before > 5_000_000
        records.retention.delete("job", job)
        records.retention.give_space_back()
        assert file.stat().st_size < before / 4
        assert records.retention.usage().free_bytes < 100_000


def test_an_sqlite_file_of_before_is_rewritten_once_much_of_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "jobs.db"
    with Database(f"sqlite:///{file}") as database:
        with database.alone() as connection:
            connection.execute("PRAGMA auto_vacuum=NONE")
            connection.execute("VACUUM")
        database.close()
        records = Records(database)
        job = records.searched(0)
        with database.writing() as connection:
            connection.execute(update(schema.jobs).values(report={"text": "x" * 5_000_000}))
        records.retention.delete("job", job)
        records.retention.give_space_back()
        assert records.retention.usage().free_bytes > 4_000_000  # not worth it
        monkeypatch.setattr("storage.retention.WASTE_BYTES", 2**20)
        records.retention.give_space_back()
        assert file.stat().st_size < 1_000_000
        with database.alone() as connection:
            assert connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2


# Folders.


NAME = work_folder_name("finetune", "a" * 64)


def test_a_folder_that_a_worker_uses_stays(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    with locked_folder(folder, lambda seconds: None):
        assert remove_folders(tmp_path, [NAME], set) == 0
        assert folder.is_dir()
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "mine").mkdir()
    assert remove_folders(tmp_path, [NAME, "mine"], lambda names: set()) == 0, "something refers to it"
    assert folders_in(tmp_path) == [NAME]
    assert size_of(folder) == 1000
    assert remove_folders(tmp_path, [NAME, "mine"], set) == 1000
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]


def test_who_waits_for_a_folder_that_is_removed_gets_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    used: list[bool] = []

    def wait_and_use() -> None:
        with locked_folder(folder, lambda seconds: waits.set()):
            used.append((folder / LOCK).exists() and not (folder / "old").exists())

    waits = threading.Event()
    with locked_folder(folder, lambda seconds: None):
        (folder / "old").write_text("old")
        thread = threading.Thread(target=wait_and_use)
        thread.start()
        assert waits.wait(10)
        folder.rename(tmp_path / "aside")  # as a removal does that comes first
    thread.join(10)
    assert used == [True]
    assert remove_folder(folder)
    assert remove_folder(folder), "one that is not there is gone"


def test_what_a_killed_removal_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.partial-1" / "model").mkdir(parents=True)
    remove_folders(tmp_path, [], set)
    assert list(tmp_path.iterdir()) == []


# The dashboard.


def test_studies_of_deleted_jobs_are_deleted_and_others_stay(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    assert forget_studies(url, {"a"}) == 0  # no tables yet
    others = {"left": {"job": "b", "target_length": 1}, "theirs": {}, "a laboratory's": {"job": "a"}}
    for name, attributes in {"gone": {"job": "a", "target_length": 1}, **others}.items():
        study = optuna.create_study(storage=url, study_name=name)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        for key, value in attributes.items():
            study.set_user_attr(key, value)
    assert forget_studies(url, {"a", "c"}) == 1
    assert {study.study_name for study in optuna.get_all_study_summaries(url)} == set(others)
    with Database(url, migrate=False) as database, database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM trial_params")).scalar_one() == 9


# REST.


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with calling(app_on(tmp_path, optuna_url=f"sqlite:///{tmp_path / 'optuna.db'}")) as client:
        yield client


def test_a_running_job_is_not_deleted(client: TestClient, tmp_path: Path) -> None:
    job = client.post("/v1/jobs", json=DOCUMENT).json()["id"]
    with FakeCoordinator(server_settings(tmp_path).database_url) as coordinator:
        lease = coordinator.claim()
        coordinator.generation(lease, 0)
        refused = client.delete(f"/v1/jobs/{job}")
        assert (refused.status_code, "is running" in refused.json()["detail"]) == (409, True)
        coordinator.finish(lease)
    assert client.post(f"/v1/jobs/{job}/keep", json={"name": "best"}).json()["id"] == job
    report = client.get("/v1/storage").json()
    assert [(item["id"], item["kept"]) for item in report["items"]] == [(job, "best")]
    assert report["evaluations"] == 4
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert client.get(f"/v1/jobs/{job}").status_code == 404
    assert client.delete(f"/v1/jobs/{job}").status_code == 404
    assert client.get("/v1/storage").json()["items"] == []


@pytest.mark.parametrize("how", ["delete", "prune"])
def test_a_deletion_leaves_the_studies_of_other_services(how: str, client: TestClient, tmp_path: Path) -> None:
    import optuna

    url, records = f"sqlite:///{tmp_path / 'optuna.db'}", Records(client.app.state.database)  # type: ignore[attr-defined]
    plan = records.plan()
    job = records.stage(plan, kind="search")
    records.age(plan.id, 31)
    for name, its in (("ours", job), ("another service's", "0" * 24)):
        study = optuna.create_study(storage=url, study_name=name)
        study.set_user_attr("job", its)
        study.set_user_attr("target_length", 512)
    if how == "delete":
        assert client.delete(f"/v1/plans/{plan.id}").status_code == 204
    else:
        assert client.post("/v1/storage/prune", json={"older_than_days": 30}).status_code == 200
    assert optuna.get_all_study_names(url) == ["another service's"]


def test_pages_of_what_is_stored(client: TestClient) -> None:
    ids = [client.post("/v1/jobs", json=DOCUMENT).json()["id"] for _ in range(3)]
    ids.append(client.post("/v1/plans", json=PLAN).json()["id"])
    seen, cursor = [], None
    while True:
        page = client.get("/v1/storage", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ids[::-1]


def test_only_who_submitted_it_or_an_admin_deletes(client: TestClient) -> None:
    keys = KeyStore(client.app.state.database)  # type: ignore[attr-defined]
    secrets = {name: keys.create(name, [name.split()[0]])[1] for name in ("read", "submit 1", "submit 2", "admin")}

    def call(who: str, method: str, path: str, **rest: Any) -> int:
        headers = {"Authorization": f"Bearer {secrets[who]}"}
        return client.request(method, path, headers=headers, **rest).status_code

    def submitted() -> str:
        headers = {"Authorization": f"Bearer {secrets['submit 1']}"}
        job = client.post("/v1/jobs", json=DOCUMENT, headers=headers).json()["id"]
        assert call("submit 1", "POST", f"/v1/jobs/{job}/cancel") == 200
        return str(job)

    job = submitted()
    for who in ("read", "submit 2"):
        assert call(who, "DELETE", f"/v1/jobs/{job}") == 403
        assert call(who, "POST", f"/v1/jobs/{job}/keep", json={"name": "x"}) == 403
        assert call(who, "POST", "/v1/storage/prune", json={"older_than_days": 0}) == 403
    assert call("submit 1", "POST", f"/v1/jobs/{job}/keep", json={"name": "x"}) == 200
    assert call("submit 1", "POST", f"/v1/jobs/{job}/keep", json={"name": "\x1b[2J"}) == 422
    assert call("submit 1", "DELETE", f"/v1/jobs/{job}") == 204
    assert call("admin", "DELETE", f"/v1/jobs/{submitted()}") == 204
    assert call("admin", "POST", "/v1/storage/prune", json={"older_than_days": 0}) == 200


def test_deletion_by_age(client: TestClient, tmp_path: Path) -> None:
    records = Records(client.app.state.database)  # type: ignore[attr-defined]
    plan = records.plan()
    records.stage(plan, sha256="a" * 64)
    young = records.searched(1)
    records.age(plan.id, 31)
    made = tmp_path / "made"
    for name in (NAME, work_folder_name("evaluate", "0" * 64)):
        (made / name).mkdir(parents=True)
        (made / name / "file").write_bytes(b"x" * 100)
    asked = {"older_than_days": 30}
    told = client.post("/v1/storage/prune", json=asked | {"dry_run": True}).json()
    assert [(item["id"], item["folder_bytes"]) for item in told["items"]] == [(plan.id, 100)]
    assert len(folders_in(made)) == 2
    done = client.post("/v1/storage/prune", json=asked).json()
    assert ([item["id"] for item in done["items"]], done["folder_bytes"]) == ([plan.id], 200)
    assert folders_in(made) == []
    assert [item["id"] for item in client.get("/v1/storage").json()["items"]] == [young]
    for bad in ({}, {"older_than_days": -1}, {"older_than_days": "nan"}, asked | {"x": 1}):
        assert client.post("/v1/storage/prune", json=bad).status_code == 422


def test_a_deletion_by_age_that_takes_long_is_done_in_parts(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(client.app.state.database)  # type: ignore[attr-defined]
    jobs = [records.searched(number) for number in range(4)]
    for days, job in enumerate(jobs):
        records.age(job, 40 - days)
    real = RetentionStore.delete

    def slow(*arguments: Any, **rest: Any) -> list[str]:
        threading.Event().wait(0.3)
        return real(*arguments, **rest)

    monkeypatch.setattr(RetentionStore, "delete", slow)
    monkeypatch.setattr("api.routes.storage.PRUNE_SECONDS", 0.4)
    asked = {"older_than_days": 30}
    deleted: list[str] = []
    for left in (True, False):
        answer = client.post("/v1/storage/prune", json=asked).json()
        deleted += [item["id"] for item in answer["items"]]
        assert answer["more"] == left
        monkeypatch.setattr("api.routes.storage.PRUNE_SECONDS", 60.0)
    assert deleted == jobs
    assert records.rows() == {}
    assert client.post("/v1/storage/prune", json=asked).json()["more"] is False


def test_one_deletion_by_age_at_a_time_and_other_changes_meanwhile(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release, real = threading.Event(), threading.Event(), RetentionStore.due

    def slow(*arguments: Any, **rest: Any) -> Any:
        begun.set()
        release.wait(60)
        return real(*arguments, **rest)

    monkeypatch.setattr(RetentionStore, "due", slow)
    asked = {"older_than_days": 30}
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(client.post, "/v1/storage/prune", json=asked)
        try:
            assert begun.wait(30)
            others = [threads.submit(client.post, "/v1/storage/prune", json=asked) for _ in range(5)]
            assert [other.result(30).status_code for other in others] == [429] * 5
            assert client.post("/v1/jobs", json=DOCUMENT).status_code == 201
        finally:
            release.set()
        assert first.result().status_code == 200


def test_what_is_due_is_found_without_its_size(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(client.app.state.database)  # type: ignore[attr-defined]
    jobs = {records.searched(number) for number in range(5)}
    for job in jobs:
        records.age(job, 40)
    monkeypatch.setattr("storage.retention._bytes_of", lambda *_: 1 / 0)
    found: list[Any] = []
    while page := records.retention.due(30 * DAY, limit=2, after=found[-1] if found else None):
        found += page
    assert [one.id for one in found] == [one.id for one in sorted(found, key=lambda one: (one.ended_at, one.id))]
    assert {one.id for one in found} == jobs


def test_a_server_ages_out_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.retention.FIRST_SECONDS", 0.1)
    monkeypatch.setattr("api.retention.LOOK_SECONDS", 0.05)
    with Database(server_settings(tmp_path).database_url) as database:
        records = Records(database)
        old, kept, young = records.searched(0), records.searched(1), records.searched(2)
        records.retention.keep("job", kept, "k")
        for job in (old, kept):
            records.age(job, 8)
        with calling(app_on(tmp_path, keep_days=7.0)):
            for _ in range(200):
                if records.retention.gone([old]):
                    break
                threading.Event().wait(0.05)
    with calling(app_on(tmp_path)) as client:
        left = {item["id"] for item in client.get("/v1/storage").json()["items"]}
    assert left == {kept, young}


def test_nothing_is_aged_out_after_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.retention.FIRST_SECONDS", 0.3)
    monkeypatch.setattr("api.retention.LOOK_SECONDS", 0.02)
    looks = iter(range(1000))
    monkeypatch.setattr(RetentionStore, "clock", lambda store: 1e9 if next(looks) < 3 else 2e9)
    with Database(server_settings(tmp_path).database_url) as database:
        records = Records(database)
        old = records.searched(0)
        records.age(old, 8)
        with calling(app_on(tmp_path, keep_days=7.0)):
            threading.Event().wait(1.5)
        assert next(looks) > 3
        assert records.retention.gone([old]) == set()
