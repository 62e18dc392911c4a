"""The database's clock is set forward or back: no job stalls, and none is driven by two coordinators."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from factor_search.spec import parse_spec
from storage.clock import Clock
from storage.coordinators import CoordinatorStore
from storage.database import Database
from storage.jobs import JobStore
from storage.schema import coordinators, jobs

SPEC = parse_spec({"name": "one", "model": "some/model", "data": ["a.txt"], "target_length": 512})
HOUR = 3600.0


def set_clock(database: Database, by: float) -> None:
    """Set the clock forward (back, if negative): seen from the new time, all that was stored is as much older."""
    with database.writing() as connection:
        for table, columns in ((jobs, ("lease_until", "waits_until")), (coordinators, ("seen_at",))):
            connection.execute(update(table).values({name: table.c[name] - by for name in columns}))


class Time:
    """A monotonic clock that differs from the database's by what that was set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class TestClockContract:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'jobs.db'}"
        else:
            url = request.getfixturevalue("postgresql_database")
        with Database(url) as database:
            yield database

    def test_the_job_of_a_dead_coordinator_does_not_wait_for_the_clock(self, database: Database) -> None:
        store = JobStore(database)
        job, _ = store.submit(SPEC)
        store.claim("dead", 10)
        set_clock(database, -HOUR)
        claimed = JobStore(database).claim("other", 10)
        assert claimed is not None
        assert (claimed[0].id, claimed[1].attempt) == (job.id, 2)

    @pytest.mark.parametrize("by", [-HOUR, HOUR])
    def test_the_job_of_a_living_coordinator_stays_with_it(self, database: Database, by: float) -> None:
        store, other, time = JobStore(database), JobStore(database), Time()
        other.clock = Clock(time)
        store.submit(SPEC)
        _, lease = store.claim("living", 10) or pytest.fail("nothing to claim")
        assert other.claim("other", 10) is None
        set_clock(database, by)
        time.seconds -= by  # what the other sees of it
        assert other.claim("other", 10) is None, "it takes a job before its owner could renew the lease"
        assert store.renew([lease], 10) == {lease: None}
        time.seconds += 11
        other.clock.saw(time.seconds - 11)  # an even clock since
        assert other.claim("other", 10) is None

    @pytest.mark.parametrize("by", [-HOUR, HOUR])
    def test_a_dead_coordinators_job_is_taken_soon_after_a_step_was_noticed(
        self, database: Database, by: float
    ) -> None:
        store, other, time = JobStore(database), JobStore(database), Time()
        other.clock = Clock(time)
        store.submit(SPEC)
        store.claim("dead", 10)
        assert other.claim("other", 10) is None
        set_clock(database, by)
        time.seconds -= by
        assert other.claim("other", 10) is None
        stepped = time.seconds
        other.clock._monotonic = lambda: stepped + 10.5  # half a lease later than noticed, less than it may drift
        other.clock._ahead = None
        assert other.claim("other", 10) is not None

    def test_a_pause_is_at_once_where_the_coordinator_is_dead(self, database: Database) -> None:
        store = JobStore(database)
        job, _ = store.submit(SPEC)
        store.claim("dead", 10)
        set_clock(database, -HOUR)
        assert store.pause(job.id).state == "paused"

    def test_a_job_that_waits_for_capacity_does_not_wait_for_the_clock(self, database: Database) -> None:
        store = JobStore(database)
        store.submit(SPEC)
        _, lease = store.claim("c", 10) or pytest.fail("nothing to claim")
        store.give_back(lease, wait_seconds=10)
        assert JobStore(database).claim("c", 10) is None
        set_clock(database, -HOUR)
        assert JobStore(database).claim("c", 10) is not None

    def test_a_report_of_the_future_is_of_a_coordinator_that_is_gone(self, database: Database) -> None:
        store = CoordinatorStore(database)
        store.report("gone", "host", 1, {})
        set_clock(database, -HOUR)
        store.report("here", "host", 2, {})
        here, gone = store.list()
        assert (here.id, gone.id) == ("here", "gone")
        assert here.silent_seconds < 30 < gone.silent_seconds
        set_clock(database, -48 * HOUR)
        store.report("here", "host", 2, {})
        assert [known.id for known in store.list()] == ["here"]

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=st.lists(st.floats(-1e8, 1e8), min_size=1, max_size=4), alive=st.booleans())
    @example(steps=[-5.0], alive=False)
    def test_any_steps(self, database: Database, steps: list[float], alive: bool) -> None:
        with database.writing() as connection:
            connection.execute(jobs.delete())
        store = JobStore(database)
        store.submit(SPEC)
        _, lease = store.claim("first", 5) or pytest.fail("nothing to claim")
        for by in steps:
            set_clock(database, by)
            if alive:
                assert store.renew([lease], 5) == {lease: None}
                assert JobStore(database).claim("other", 5) is None
        if not alive:
            claims = [JobStore(database).claim("other", 60)]
            set_clock(database, 6.5)  # a lease, and what a clock may go back by
            claims.append(JobStore(database).claim("third", 60))
            assert len([claim for claim in claims if claim is not None]) == 1
            assert store.renew([lease], 5) == {}


def test_a_clock_that_runs_evenly_has_no_steps() -> None:
    time = Time()
    clock = Clock(time)
    for at, database in ((0.0, 100.0), (5.0, 105.4), (3600.0, 3700.1)):
        time.seconds = at
        clock.saw(database)
        assert not clock.stepped_within(1e6)
    time.seconds = 3601.0
    clock.saw(3600.0)
    assert clock.stepped_within(10)
    time.seconds = 3612.0
    assert not clock.stepped_within(10)
