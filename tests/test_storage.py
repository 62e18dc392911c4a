"""One contract for SQLite and PostgreSQL."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text, update

from factor_search.measure.evaluation import DIVERGED, FAILED, OK, OUT_OF_MEMORY
from factor_search.spec import JobSpec, parse_spec
from storage.coordinators import CoordinatorStore
from storage.database import VERSION_TABLE, Database
from storage.errors import ConflictError, DatabaseError, LeaseLostError, NotFoundError
from storage.evaluations import Batch, EvaluationStore
from storage.events import read_events
from storage.jobs import JobStore, Lease
from storage.keys import KeyStore
from storage.schema import jobs, metadata
from tests.records import candidate, computed

SPEC = parse_spec({"name": "one", "model": "some/model", "data": ["a.txt"], "target_length": 512})


def spec(**changes: object) -> JobSpec:
    return parse_spec(SPEC.model_dump() | changes)


class TestStoreContract:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'jobs.db'}"
        else:
            url = request.getfixturevalue("postgresql_database")
        with Database(url) as database:
            yield database

    @pytest.fixture
    def store(self, database: Database) -> JobStore:
        return JobStore(database)

    @pytest.fixture
    def evaluations(self, database: Database) -> EvaluationStore:
        return EvaluationStore(database)

    @pytest.fixture
    def lease(self, store: JobStore, evaluations: EvaluationStore) -> Lease:
        return claimed(store, evaluations)

    def test_the_migrations_make_the_tables_of_the_schema(self, database: Database) -> None:
        with database.reading() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "version_table": VERSION_TABLE,
                    "include_name": lambda name, kind, parents: name != "alembic_version",
                },
            )
            assert compare_metadata(context, metadata) == []

    def test_a_submitted_job_is_queued_with_its_specification(self, store: JobStore, database: Database) -> None:
        job, new = store.submit(SPEC)
        assert (new, job.state, job.parse_spec(), job.attempt) == (True, "queued", SPEC, 0)
        assert store.get(job.id) == job
        assert [event.kind for event in read_events(database, job.id)] == ["submitted"]

    def test_an_idempotency_key_gives_the_same_job_or_a_conflict(self, store: JobStore) -> None:
        first, _ = store.submit(SPEC, idempotency_key="k")
        assert store.submit(SPEC, idempotency_key="k") == (first, False)
        with pytest.raises(ConflictError, match=first.id):
            store.submit(spec(budget={"candidates": 7}), idempotency_key="k")
        assert store.submit(SPEC)[0].id != first.id

    def test_jobs_are_listed_newest_first_in_pages(self, store: JobStore) -> None:
        ids = [store.submit(SPEC)[0].id for _ in range(5)]
        first = store.list(limit=2)
        second = store.list(limit=9, before=(first[-1].submitted_at, first[-1].id))
        assert [job.id for job in first + second] == ids[::-1]
        assert store.list(state="paused") == []

    def test_an_unknown_job_is_not_found(self, store: JobStore) -> None:
        for action in (store.get, store.pause, store.resume, store.cancel, lambda job: store.document(job, "report")):
            with pytest.raises(NotFoundError, match="nothing"):
                action("nothing")

    def test_each_job_is_claimed_once_by_many_coordinators(self, store: JobStore) -> None:
        ids = {store.submit(SPEC)[0].id for _ in range(30)}
        claims: list[str] = []

        def claim_all(owner: str) -> None:
            while (claim := store.claim(owner, 60)) is not None:
                claims.append(claim[0].id)

        threads = [threading.Thread(target=claim_all, args=(f"c{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(claims) < len(ids):  # a claim that skipped locked rows may have seen none
            claim_all("last")
        assert Counter(claims) == Counter(ids)

    def test_the_oldest_job_is_claimed_first(self, store: JobStore) -> None:
        first, second = store.submit(SPEC)[0], store.submit(SPEC)[0]
        assert [store.claim("c", 60)[0].id for _ in range(2)] == [first.id, second.id]
        assert store.claim("c", 60) is None

    def test_a_lease_that_ran_out_goes_to_another_and_fences_the_first(
        self, store: JobStore, evaluations: EvaluationStore
    ) -> None:
        store.submit(SPEC)
        _, old = store.claim("slow", -1)
        job, new = store.claim("other", 60)
        assert (old.attempt, new.attempt, job.claims_in_vain) == (1, 2, 2)
        with pytest.raises(LeaseLostError):
            evaluations.start_search(old, 512, "s", {})
        evaluations.start_search(new, 512, "s", {})
        stale = Batch(computed=[computed(candidate(0))], done=[(candidate(0), OK, False)], events=[("late", {})])
        fresh = Batch(done=[(candidate(1), OK, False)], computed=[computed(candidate(1))])
        assert evaluations.record({old: stale, new: fresh}).lost == [old]
        assert evaluations.lookup([candidate(0).key, candidate(1).key], job.id).keys() == {candidate(1).key}
        with pytest.raises(LeaseLostError):
            store.end(old, "finished")
        assert store.get(job.id).claims_in_vain == 0
        assert store.renew([old], 60) == {}
        assert store.renew([old, new], 60) == {new: None}

    def test_a_late_renewal_holds_if_nobody_took_the_job(self, store: JobStore) -> None:
        store.submit(SPEC)
        _, lease = store.claim("slow", -1)
        assert store.renew([lease], 60) == {lease: None}
        assert store.claim("other", 60) is None

    def test_pause_and_resume_of_a_job_that_nobody_drives(self, store: JobStore) -> None:
        job, _ = store.submit(SPEC)
        assert store.pause(job.id).state == "paused"
        assert store.claim("c", 60) is None
        assert store.resume(job.id).state == "queued"
        assert store.claim("c", 60)[0].id == job.id

    def test_a_driven_job_is_asked_to_pause(self, store: JobStore, lease: Lease, database: Database) -> None:
        job = store.pause(lease.job_id)
        assert (job.state, job.request) == ("running", "pause")
        assert store.renew([lease], 60) == {lease: "pause"}
        assert store.resume(lease.job_id).request is None
        store.pause(lease.job_id)
        store.end(lease, "paused")
        assert (store.get(lease.job_id).state, store.get(lease.job_id).request) == ("paused", None)
        kinds = [event.kind for event in read_events(database, lease.job_id)]
        assert kinds == ["submitted", "claimed", "pause_requested", "resumed", "pause_requested", "paused"]

    def test_a_job_whose_coordinator_is_gone_is_cancelled_at_once(self, store: JobStore) -> None:
        job, _ = store.submit(SPEC)
        _, lease = store.claim("gone", -1)
        assert store.cancel(job.id).state == "cancelled"
        with pytest.raises(LeaseLostError):
            store.end(lease, "finished")
        for action in (store.pause, store.resume):
            with pytest.raises(ConflictError, match="cancelled"):
                action(job.id)
        assert store.cancel(job.id).state == "cancelled"

    def test_a_cancel_overrides_a_pause_but_not_the_other_way(self, store: JobStore, lease: Lease) -> None:
        store.pause(lease.job_id)
        assert store.cancel(lease.job_id).request == "cancel"
        for action in (store.pause, store.resume):
            with pytest.raises(ConflictError):
                action(lease.job_id)

    def test_a_job_given_back_waits(self, store: JobStore, lease: Lease) -> None:
        store.give_back(lease, wait_seconds=60, reason="no room")
        assert (store.get(lease.job_id).state, store.claim("c", 60)) == ("queued", None)

    def test_what_a_finished_job_found(self, store: JobStore, lease: Lease) -> None:
        assert store.document(lease.job_id, "factors") is None
        store.end(lease, "finished", factors={"rescale_factors": [0.1]}, report={"a": 1})
        assert store.document(lease.job_id, "factors") == {"rescale_factors": [0.1]}
        assert store.get(lease.job_id).ended_at is not None
        assert store.count_by_state() == {"finished": 1}
        with pytest.raises(ConflictError, match="finished"):
            store.cancel(lease.job_id)

    def test_evaluations_come_back_bit_for_bit(self, evaluations: EvaluationStore, lease: Lease) -> None:
        item = computed(candidate(3), losses=(0.1 + 0.2, 1 / 3))
        evaluations.record({lease: Batch(computed=[item], done=[(candidate(3), OK, False)])})
        assert evaluations.lookup([item.evaluation.key], "any") == {item.evaluation.key: item.evaluation}
        (row,) = evaluations.of_job(lease.job_id)
        assert (row.state, row.evaluation, row.factors) == ("done", item.evaluation, candidate(3).factors)

    def test_only_what_says_something_of_the_candidate_is_shared(
        self, store: JobStore, evaluations: EvaluationStore, lease: Lease
    ) -> None:
        other = claimed(store, evaluations)
        items = [computed(candidate(0), DIVERGED), computed(candidate(1), OUT_OF_MEMORY)]
        keys = [item.evaluation.key for item in items]
        evaluations.record({lease: Batch(computed=items)})
        assert evaluations.lookup(keys, lease.job_id).keys() == set(keys)
        assert evaluations.lookup(keys, other.job_id).keys() == {keys[0]}
        evaluations.record({other: Batch(computed=[computed(candidate(1), FAILED)])})
        outcomes = [evaluations.lookup(keys, job)[keys[1]].outcome for job in (lease.job_id, other.job_id)]
        assert outcomes == [OUT_OF_MEMORY, FAILED]
        third = claimed(store, evaluations)
        evaluations.record({third: Batch(computed=[computed(candidate(1), OK)])})
        assert evaluations.lookup(keys, "any")[keys[1]].outcome == OK
        replay = evaluations.lookup(keys, lease.job_id)
        assert replay[keys[1]].outcome == OUT_OF_MEMORY  # as its search saw it

    def test_who_computes_what_another_has_just_recorded_is_told_what_stays(
        self, store: JobStore, evaluations: EvaluationStore, lease: Lease
    ) -> None:
        other = claimed(store, evaluations)
        first, second = computed(candidate(0), losses=(0.2, 0.3)), computed(candidate(0), losses=(0.4, 0.5))
        assert evaluations.record({lease: Batch(computed=[first])}).known_before == {}
        told = evaluations.record({other: Batch(computed=[second], done=[(candidate(0), OK, False)])}).known_before
        assert told == {first.evaluation.key: first.evaluation}
        assert evaluations.of_job(other.job_id)[0].evaluation == first.evaluation

    def test_claims_in_vain_are_counted_until_a_candidate_is_done(
        self, store: JobStore, evaluations: EvaluationStore
    ) -> None:
        job, _ = store.submit(SPEC)
        for attempt in range(1, 4):
            _, lease = store.claim("c", -1)
            evaluations.start_search(lease, 512, "study", {})
            evaluations.record({lease: Batch(started=[candidate(0)], events=[("phase", {})], progress={"a": 1})})
            assert store.get(job.id).claims_in_vain == attempt
        evaluations.record({lease: Batch(computed=[computed(candidate(0))], done=[(candidate(0), OK, False)])})
        assert store.get(job.id).claims_in_vain == 0

    def test_a_coordinator_takes_one_at_a_time_of_the_jobs_whose_coordinator_died(
        self, store: JobStore, evaluations: EvaluationStore
    ) -> None:
        ids = [store.submit(SPEC)[0].id for _ in range(3)]
        begun = [store.claim("dead", 60)[1] for _ in range(2)]
        store.renew(begun, -1)  # the coordinator dies while two of them begin
        first, lease = store.claim("c", 60)
        fresh, _ = store.claim("c", 60)
        assert (first.id, fresh.id) == (ids[0], ids[2]), "the second is not claimed beside the first"
        assert store.claim("c", 60) is None
        other, _ = store.claim("d", 60)
        assert other.id == ids[1], "another coordinator may"
        assert store.claim("e", 60) is None
        evaluations.start_search(lease, 512, "study", {})
        evaluations.record({lease: Batch(computed=[computed(candidate(0))], done=[(candidate(0), OK, False)])})
        store.submit(SPEC)
        assert store.claim("c", 60) is not None

    def test_a_pause_is_no_claim_in_vain(self, store: JobStore) -> None:
        job, _ = store.submit(SPEC)
        for _ in range(4):
            claimed_again, lease = store.claim("c", 60)
            assert claimed_again.claims_in_vain == 1
            store.pause(job.id)
            store.end(lease, "paused")
            store.resume(job.id)

    def test_what_is_asked_of_a_job_that_is_given_back_is_done(self, store: JobStore, lease: Lease) -> None:
        store.cancel(lease.job_id)
        store.give_back(lease, reason="no room")
        assert store.get(lease.job_id).state == "cancelled"

    def test_candidates_are_listed_in_pages_while_they_run_and_after(
        self, evaluations: EvaluationStore, lease: Lease
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(n) for n in range(6)])})
        evaluations.record({lease: Batch(losses_so_far={candidate(0): [0.5]}, withdrawn=[candidate(5)])})
        batch = Batch(computed=[computed(candidate(1))], done=[(candidate(1), OK, False)])
        evaluations.record({lease: batch})
        evaluations.record({lease: Batch(started=[candidate(1)])})  # a replay finds it done
        rows = evaluations.of_job(lease.job_id, limit=4)
        assert [(row.number, row.state) for row in rows] == [
            (0, "running"),
            (1, "done"),
            (2, "running"),
            (3, "running"),
        ]
        assert rows[0].losses_so_far == [0.5]
        rest = evaluations.of_job(lease.job_id, after=3)
        assert [(row.number, row.state) for row in rest] == [(4, "running"), (5, "withdrawn")]
        assert evaluations.totals() == {"ok": (1, 0.25)}

    def test_events_are_numbered_without_gaps_by_many_writers(self, database: Database, store: JobStore) -> None:
        job, _ = store.submit(SPEC)

        def shake() -> None:
            for _ in range(10):
                store.pause(job.id)
                store.resume(job.id)

        threads = [threading.Thread(target=shake) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        numbers = [event.number for event in read_events(database, job.id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert read_events(database, job.id, after=3, limit=2)[0].number == 4

    def test_keys(self, database: Database) -> None:
        keys = KeyStore(database)
        known, secret = keys.create("ci", ["submit"])
        assert keys.find(secret) == known
        assert (known.allows("read"), known.allows("submit"), known.allows("admin")) == (True, True, False)
        assert keys.find(secret + "x") is None
        keys.revoke(known.id)
        assert keys.find(secret) is None
        assert keys.list()[0].revoked_at is not None
        with pytest.raises(NotFoundError):
            keys.revoke(known.id)

    def test_coordinators(self, database: Database) -> None:
        store = CoordinatorStore(database)
        store.report("c1", "host", 1, {"workers": 1})
        store.report("c1", "host", 1, {"workers": 2})
        (known,) = store.list()
        assert (known.capacity, known.silent_seconds < 30) == ({"workers": 2}, True)
        store.leave("c1")
        assert store.list() == []

    def test_a_database_of_a_newer_version_is_refused(self, database: Database) -> None:
        with database.writing() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        with pytest.raises(DatabaseError, match="update factor-search"):
            Database(database.url)

    def test_another_program_may_have_its_tables_beside_ours(self, database: Database) -> None:
        with database.writing() as connection:
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        Database(database.url).close()

    def test_many_open_an_empty_database_at_once(self, database: Database) -> None:
        with database.writing() as connection:
            metadata.drop_all(connection)
            connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        errors: list[BaseException] = []

        def open_it() -> None:
            try:
                Database(database.url).close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert JobStore(database).list() == []

    def test_a_write_that_fails_leaves_nothing(self, database: Database, store: JobStore) -> None:
        job, _ = store.submit(SPEC)

        def fail() -> None:
            with database.writing() as connection:
                connection.execute(update(jobs).values(state="paused"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.get(job.id).state == "queued"


def claimed(store: JobStore, evaluations: EvaluationStore) -> Lease:
    store.submit(SPEC)
    _, lease = store.claim("c", 60)
    evaluations.start_search(lease, 512, "study", {})
    return lease


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://a/b", "not supported"),
        ("sqlite://", "must be a file"),
        ("sqlite:////no/such/folder/x.db", "there is no folder"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot use the database postgresql://nobody@127.0.0.1:1/none"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as raised:
        Database(url)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_a_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(DatabaseError, match="not a database"):
        Database(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_password_is_not_shown() -> None:
    with pytest.raises(DatabaseError) as raised:
        Database("postgresql://u:geheim@127.0.0.1:1/none")
    assert "geheim" not in str(raised.value)
