"""A stage's work in this process, continuing from whatever its folder holds."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from factor_search.factors import Factors
from factor_search.job import read_samples
from factor_search.measure.evaluation import Evaluation, Evaluator
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import Race
from factor_search.model.loading import load_model
from factor_search.model.memory import PeakMemory
from factor_search.model.speed import device_of
from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.contract import OnProgress, Outcome, Work
from factor_search.plan.kinds.evaluate import EVALUATIONS
from factor_search.text.samples import SampleSet


def perform(work: Work, folder: Path, on_progress: OnProgress = lambda progress: None) -> Outcome:
    """Do the part of a stage's work that one worker does alone (see :meth:`StageKind.perform`).

    Raises:
        FactorSearchError: the work cannot be done, saying why.
    """
    began, peak = time.perf_counter(), PeakMemory(device_of(work.access().models[0]))
    outcome: Outcome = kind_of(work).perform(work, folder, on_progress)
    taken = {
        "seconds": time.perf_counter() - began,
        "tokens": outcome.report.get("tokens", 0),
        "peak_memory": peak.bytes(),
    }
    return outcome.model_copy(update={"taken": taken})


def perform_whole(work: Work, folder: Path, on_progress: OnProgress) -> Outcome:
    """Do all of a stage's work: what it evaluates on candidates, then the rest.

    Raises:
        FactorSearchError: the work cannot be done, saying why.
    """
    evaluated = evaluate_candidates(work, folder, on_progress)
    return with_evaluated(perform(work, folder, on_progress), evaluated)


def with_evaluated(outcome: Outcome, evaluated: dict[str, Any]) -> Outcome:
    """The outcome of a whole stage: the part of its report that evaluates candidates, and the rest."""
    return outcome.model_copy(update={"report": {**evaluated, **outcome.report}})


def evaluate_candidates(work: Work, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """The part of a stage's report that evaluates candidates, empty if it has none; evaluations are kept in the folder.

    Raises:
        FactorSearchError: the model or the documents cannot be read, or the lengths do not fit the model.
    """
    job = work.evaluated_as()
    if job is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    on_progress({"phase": "loading"})
    loaded = load_model(job.model)
    samples, kind = read_samples(job, loaded), kind_of(work)
    with Ledger(folder / EVALUATIONS) as ledger, LocalEvaluator(loaded, job.target_length) as local:
        steps = kind.candidates(work, loaded.geometry)
        reporting = _ReportingEvaluator(RecordedEvaluator(local, ledger), steps, on_progress)
        evaluated: dict[str, Any] = kind.evaluate(work, reporting, loaded.geometry, samples)
    return evaluated


class _ReportingEvaluator:
    """An evaluator that reports each evaluation as progress."""

    def __init__(self, evaluator: Evaluator, steps: int, on_progress: OnProgress) -> None:
        self._evaluator, self._steps, self._on_progress = evaluator, steps, on_progress
        self._done = 0

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return self._evaluator.key(factors, samples, documents)

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        for evaluation in self._evaluator.evaluate_all(candidates, samples, race):
            self._done += 1
            self._on_progress({"phase": "measuring a ladder of lengths", "step": self._done, "steps": self._steps})
            yield evaluation
