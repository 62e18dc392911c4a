"""Races in the service: candidates are stopped and continued as in one process, whatever happens meanwhile."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench.stub import PREPARED, StubEvaluator, samples, stub_spec
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED, Evaluation
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import Race
from factor_search.report.document import build_factors_file, build_report
from factor_search.search import problem
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobWatcher, search_and_measure
from factor_search.search.space import SearchSpace
from factor_search.search.strategies import Generation, Result
from factor_search.search.strategies.contract import Check
from factor_search.search.strategies.evolution import Evolution
from factor_search.spec import EvolutionSpec, JobSpec, StrategySpec
from storage.database import Database
from storage.evaluations import Batch, Candidate, CandidateRow, Computed, EvaluationStore
from storage.jobs import JobStore, Lease
from tests.service import FaultyWorker, Service
from tests.test_faults import kill_worker
from workers.known_results import known_results
from workers.model_worker import Prepared, Setting

FOUR = replace(PREPARED, samples=samples(documents=4))
SMALL = {"kind": "evolution", "population": 24, "parents": 6, "mutants": 8, "crossovers": 8}
HALVING = {"kind": "evolution", "population": 12, "parents": 6, "mutants": 6, "crossovers": 6, "generations": 4}


class Halving:
    """Each brood on one document, its better half on two, the best of these on all, and one of them twice."""

    def __init__(
        self,
        spec: StrategySpec,
        space: SearchSpace,
        seeds: Sequence[Factors],
        seed: int,
        *,
        documents: int,
        check: Check,
        later: Sequence[Factors],
    ) -> None:
        assert isinstance(spec, EvolutionSpec)
        self._breeder = Evolution(spec, space, seeds, seed=seed)
        self._documents = 0
        self._asked: tuple[Factors, ...] = ()
        self._brood: dict[Factors, float] = {}

    def ask(self) -> Generation:
        if self._documents in (0, 4):
            self._asked, self._documents = self._breeder.ask().candidates, 1
        else:
            best = sorted(dict.fromkeys(self._asked), key=lambda factors: self._brood[factors])
            self._asked, self._documents = tuple(best[: len(best) // 2]), 2 * self._documents
            self._asked += self._asked[:1]
        return Generation(self._asked, self._documents if self._documents < 4 else None)

    def tell(self, results: Sequence[Result]) -> None:
        losses = dict(zip(self._asked, [result.loss for result in results], strict=False))
        if self._documents == 1:
            self._brood = {}
            self._breeder.tell(results)
        self._brood |= losses


class RacingWorker(FaultyWorker):
    """Counts how often each document is evaluated for each candidate."""

    documents: ClassVar[Counter[tuple[Factors, str, int]]] = Counter()

    def prepare(self, spec: JobSpec) -> Prepared:
        return FOUR

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
        evaluation = super().evaluate(setting, factors, samples_sha256, **race)
        known = race["known"]
        for document in range(len(known.losses) if known else 0, len(evaluation.losses)):
            self.documents[factors, evaluation.part, document] += 1
        return evaluation


@pytest.fixture(params=["evolution", "halving"])
def spec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    RacingWorker.documents.clear()
    if request.param == "evolution":
        return stub_spec(strategy=SMALL, racing=True, budget=120)
    monkeypatch.setattr(problem, "build_strategy", Halving)
    return stub_spec(strategy=HALVING, racing=True, budget=60)


def start(service: Service, workers: int = 3) -> None:
    service.start(workers, make=lambda: RacingWorker(service.faults))


Way = tuple[dict[str, Any], dict[str, Any], list[tuple[Any, ...]]]


def in_one_process(spec: JobSpec, folder: Path) -> Way:
    """How the search goes in one process, with its result."""
    with Ledger(folder / "evaluations.jsonl") as ledger:
        recorded = RecordedEvaluator(StubEvaluator(), ledger)
        result = search_and_measure(SearchProblem.of(spec, FOUR.geometry), FOUR.samples, recorded, JobWatcher())
    way = [(one.factors, one.key, one.outcome, one.losses, one.tokens) for one in result.state.evaluations]
    return (*comparable(build_factors_file(result).as_json(), build_report(result)), way)


def of_service(service: Service, job_id: str) -> Way:
    """The same of a finished job, from what is stored."""
    factors, report = service.jobs.document(job_id, "factors"), service.jobs.document(job_id, "report")
    assert factors is not None, service.jobs.get(job_id).error
    assert report is not None
    known = [row.evaluation for row in rows_of(service, job_id) if row.state == "done"]
    way = [(one.factors, one.key, one.outcome, one.losses, one.tokens) for one in known if one is not None]
    assert len(way) == len(known), "every candidate points at its evaluation"
    return (*comparable(factors, report), way)


def comparable(factors: dict[str, Any], report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    found = {name: value for name, value in factors.items() if name != "sha256"}
    return found, {name: value for name, value in report["search"].items() if name != "seconds"}


def rows_of(service: Service, job_id: str) -> list[CandidateRow]:
    return EvaluationStore(service.database).of_job(job_id, limit=1000)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_race_goes_as_in_one_process(
    kind: str, spec: JobSpec, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_database")
    service = Service(url)
    try:
        start(service)
        submitted, _ = service.jobs.submit(spec)
        assert service.wait(submitted.id) == "finished"
        expected = in_one_process(spec, tmp_path)
        assert of_service(service, submitted.id) == expected
        outcomes = Counter(outcome for _, _, outcome, _, _ in expected[2])
        assert min(outcomes[OK], outcomes[PRUNED]) > 5
        assert set(RacingWorker.documents.values()) == {1}, "what is known of a candidate is not evaluated again"
        progress = service.jobs.get(submitted.id).progress
        assert progress["candidates"] == len({factors for factors, *_ in expected[2]})
        assert progress["evaluations"] == len(expected[2])
    finally:
        service.stop()
        service.database.close()


def test_workers_that_die_change_nothing(service: Service, spec: JobSpec, tmp_path: Path) -> None:
    for number in (3, 14, 16, 30, 31, 40):
        service.faults.at[number] = lambda: kill_worker(service)
    start(service)
    submitted, _ = service.jobs.submit(spec)
    assert service.wait(submitted.id, seconds=60) == "finished"
    assert Counter(service.kinds(submitted.id))["worker_lost"] == 6
    assert of_service(service, submitted.id) == in_one_process(spec, tmp_path)


def test_stopped_and_taken_up_again_in_every_way(
    service: Service, spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.faults.seconds = 0.2
    start(service, workers=2)
    submitted, _ = service.jobs.submit(spec)
    service.candidates(submitted.id, 5)
    service.jobs.pause(submitted.id)
    service.wait(submitted.id, "paused")
    service.jobs.resume(submitted.id)
    service.candidates(submitted.id, len(rows_of(service, submitted.id)) + 5)
    service.stop()  # gives it back
    start(service, workers=2)
    service.candidates(submitted.id, len(rows_of(service, submitted.id)) + 5)
    monkeypatch.setattr(service.running[0][0], "_round", lambda: None)  # falls silent
    start(service, workers=2)
    while service.jobs.get(submitted.id).attempt < 4:
        assert service.jobs.get(submitted.id).state == "running"
        time.sleep(0.05)
    service.faults.seconds = 0.01
    assert service.wait(submitted.id, seconds=60) == "finished"
    assert service.jobs.get(submitted.id).attempt == 4
    assert of_service(service, submitted.id) == in_one_process(spec, tmp_path)


def test_what_other_jobs_know_is_continued_or_cut(service: Service, spec: JobSpec, tmp_path: Path) -> None:
    """Jobs that race, and that do not, on the same candidates: each goes as if it were alone."""
    start(service)
    whole = spec.model_copy(update={"racing": False, "name": "whole"})
    jobs = [service.jobs.submit(one)[0].id for one in (whole, spec)]
    again = spec.model_copy(update={"seed": 1, "name": "again"})
    for one in (again, spec, whole):
        service.wait(jobs[0])
        jobs.append(service.jobs.submit(one)[0].id)
    for number, (job_id, one) in enumerate(zip(jobs, (whole, spec, again, spec, whole), strict=True)):
        assert service.wait(job_id) == "finished"
        folder = tmp_path / str(number)
        folder.mkdir()
        assert of_service(service, job_id) == in_one_process(one, folder)


def test_a_known_evaluation_is_cut_to_where_the_race_stops_it(service: Service, tmp_path: Path) -> None:
    start(service)
    spec = stub_spec(strategy=SMALL, budget=120)
    first, _ = service.jobs.submit(spec)
    service.wait(first.id)
    racing = spec.model_copy(update={"racing": True})
    second, _ = service.jobs.submit(racing)
    assert service.wait(second.id) == "finished"
    assert of_service(service, second.id) == in_one_process(racing, tmp_path)
    cut = [row for row in rows_of(service, second.id) if row.worker == ""]
    assert cut
    assert {(row.reused, row.attempts) for row in cut} == {(True, 0)}
    assert {row.evaluation.outcome for row in cut if row.evaluation} == {PRUNED}


def test_a_candidate_that_is_continued_shows_what_is_known(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "build_strategy", Halving)
    service.faults.seconds = 0.2
    start(service)
    submitted, _ = service.jobs.submit(stub_spec(strategy=HALVING, racing=True, budget=20))
    seen = set()
    while service.jobs.get(submitted.id).state in ("queued", "running"):
        running = [row for row in rows_of(service, submitted.id) if row.state == "running"]
        seen |= {(row.generation % 3, len(row.losses_so_far or ())) for row in running}
        time.sleep(0.02)
    assert seen == {(0, 0), (1, 1), (2, 2)}


def test_what_a_job_has_seen_stays_what_others_find_later(tmp_path: Path) -> None:
    """A driver that replays must take the same way, also where the race would now decide otherwise."""
    evaluator, samples, factors = StubEvaluator(), FOUR.samples.search, Factors.of([1.5] * 16)
    whole = evaluator.evaluate(factors, samples)
    stops = Race(documents=1)
    diverged = replace(whole, outcome=DIVERGED, losses=(), tokens=())
    pruned = evaluator.evaluate(factors, samples, race=stops)
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database:
        store, jobs = EvaluationStore(database), JobStore(database)
        proposal = Candidate(part="search", number=0, generation=0, key=whole.key, factors=factors)

        def claimed() -> Lease:
            jobs.submit(stub_spec())
            claim = jobs.claim("c", 60)
            assert claim is not None
            store.start_search(claim[1], 1024, "study", {})
            return claim[1]

        def record(lease: Lease, evaluation: Evaluation) -> None:
            done = (replace(proposal, key=evaluation.key), evaluation.outcome, False)
            store.record(
                {lease: Batch(computed=[Computed(evaluation=evaluation, worker="w", attempts=1)], done=[done])}
            )

        def stands(lease: Lease, race: Race | None) -> Any:
            def key_of(proposal: Candidate, documents: int) -> str:
                return evaluator.key(proposal.factors, samples, documents)

            return known_results(store, lease.job_id, [proposal], samples, race, key_of)

        ours, others, third = claimed(), claimed(), claimed()
        record(ours, diverged)
        assert stands(ours, stops).stored == {whole.key: diverged}
        record(others, pruned)
        assert stands(ours, stops).stored == {whole.key: diverged}
        assert stands(others, stops).stored == {whole.key: pruned}
        assert stands(third, stops).stored == {whole.key: pruned}
        assert stands(third, None).stored == {whole.key: diverged}
