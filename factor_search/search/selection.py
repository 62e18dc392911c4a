"""Runs a search, chooses the winner on validation documents, and measures it on held-out documents."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from factor_search.errors import SearchFailedError
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, PRUNED, Evaluation, Evaluator
from factor_search.search.loop import SearchState, search
from factor_search.search.problem import SearchProblem
from factor_search.text.samples import Samples, SampleSet, Watch

NOT_FINITE = (
    "If the precision is float16, activations of this model overflow on these documents: give model.dtype bfloat16 or "
    "float32"
)
FINALISTS = 5
"""Number of candidates that are evaluated on the validation documents, in addition to all closed forms."""


@dataclass
class JobWatcher:
    """Callbacks for the progress of a job; each may be replaced."""

    phase: Callable[[str], None] = lambda text: None
    problem: Callable[[SearchProblem], None] = lambda problem: None
    """Called once, before the first candidate."""
    candidate: Callable[[SearchState], None] = lambda state: None
    scored: Callable[[str, int, int], None] = lambda part, done, total: None
    documents: Watch | None = None
    check: Callable[[], None] = lambda: None
    """Called while a strategy proposes; may raise to stop the job."""


@dataclass
class JobResult:
    """The result of a job, from which its report is made."""

    problem: SearchProblem
    samples: Samples
    state: SearchState
    finalists: dict[str, Factors] = field(default_factory=dict)
    validation: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the validation documents, by name of method or finalist."""
    held_out: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the held-out documents, by name of method or of the winner."""
    held_out_text: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the plain text of the held-out documents, if the objective is not perplexity."""
    winner: str = ""
    """Name of the finalist or method that is best on the validation documents; empty before the choice."""
    interrupted: bool = False

    @property
    def winning_factors(self) -> Factors:
        """The factors of the winner, or of the best candidate of the search before the choice."""
        if self.winner:
            return self.candidates[self.winner]
        assert self.state.best is not None
        return self.state.best.factors

    @property
    def candidates(self) -> dict[str, Factors]:
        """Closed forms and finalists, by name."""
        return self.problem.methods | self.finalists


def search_and_measure(
    problem: SearchProblem, samples: Samples, evaluator: Evaluator, watcher: JobWatcher
) -> JobResult:
    """Search, choose the winner and measure it, with any evaluator.

    A keyboard interrupt after the first candidate gives a partial result.

    Raises:
        SearchFailedError: no candidate could be evaluated.
        KeyboardInterrupt: before the first candidate.
    """
    spec = problem.spec
    watcher.problem(problem)
    watcher.phase("searching")
    state = search(
        problem.strategy(len(samples.search.samples), watcher.check),
        evaluator,
        samples.search,
        spec.budget,
        watcher.candidate,
        error_rate=spec.racing_error_rate,
        original_length=problem.geometry.original_length,
    )
    if state.best is None:
        raise KeyboardInterrupt
    if state.best.outcome not in (OK, PRUNED):
        outcomes = Counter(evaluation.outcome for evaluation in state.evaluations)
        named = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in outcomes.most_common())
        message = f"none of {len(state.candidates)} candidates could be evaluated: {named}"
        if state.ended_by == "diverged":
            message += f"; the closed forms are among them. {NOT_FINITE}"
        raise SearchFailedError(message)
    result = JobResult(problem, samples, state)
    result.interrupted = state.ended_by == "interrupt"
    if not result.interrupted:
        try:
            _choose(result, evaluator, watcher)
        except KeyboardInterrupt:
            result.interrupted = True
    return result


def finalists(state: SearchState) -> list[Factors]:
    """Return the best candidates on the search documents, and the best after 1/2, 1/4 and 1/8 of the candidates.

    The longer a search runs, the more its best candidate overfits the search documents. An earlier best may be better
    on other documents, while the best candidates at the end are very similar to each other.
    """
    measured = [one for one in state.candidates.values() if one.outcome in (OK, PRUNED)]
    # Most documents first. The sort is stable, so ties keep their order.
    measured.sort(key=lambda one: (-len(one.losses), one.summary.loss))
    ranked = [evaluation.factors for evaluation in measured]
    earlier = []
    for share in (2, 4, 8):
        until = [best.factors for count, best in state.best_at if count <= len(state.candidates) / share]
        earlier += until[-1:]
    return list(dict.fromkeys([*ranked[:2], *earlier, *ranked[2:]]))[:FINALISTS]


def _choose(result: JobResult, evaluator: Evaluator, watcher: JobWatcher) -> None:
    """Choose the winner on the validation documents, and measure it and all closed forms on the held-out documents."""
    known = set(result.problem.methods.values())
    best = enumerate(finalists(result.state), start=1)
    result.finalists = {f"found-{n}": factors for n, factors in best if factors not in known}
    watcher.phase("choosing on validation documents")
    validation = _score(result.candidates, result.samples.validation, evaluator, watcher)
    winner = min(validation, key=lambda name: validation[name].loss)
    watcher.phase("measuring on held-out documents")
    reported = result.problem.methods | {winner: result.candidates[winner]}
    held_out = _score(reported, result.samples.held_out, evaluator, watcher)
    if result.samples.held_out_text is not None:
        watcher.phase("measuring on the plain text of held-out documents")
        result.held_out_text = _score(reported, result.samples.held_out_text, evaluator, watcher)
    result.validation, result.held_out, result.winner = validation, held_out, winner


def _score(
    candidates: dict[str, Factors], samples: SampleSet, evaluator: Evaluator, watcher: JobWatcher
) -> dict[str, Evaluation]:
    scored = {}
    evaluations = evaluator.evaluate_all(list(candidates.values()), samples)
    for number, (name, evaluation) in enumerate(zip(candidates, evaluations, strict=True), start=1):
        scored[name] = evaluation
        watcher.scored(samples.part, number, len(candidates))
    return scored
