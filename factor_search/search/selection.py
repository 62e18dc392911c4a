"""Runs a search, chooses the winner on validation documents, and measures it on held-out documents."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from factor_search.errors import SearchFailedError
from factor_search.factors import Factors
from factor_search.measure.evaluation import EARLIER_IDENTITY, OK, PRUNED, Evaluation, Evaluator
from factor_search.measure.race import mean_difference
from factor_search.search.guard import OTHER_WINDOWS, Guard
from factor_search.search.loop import SearchState, search
from factor_search.search.problem import SearchProblem
from factor_search.search.short_texts import Windows, short_texts
from factor_search.text.samples import Samples, SampleSet, Watch

NOT_FINITE = (
    "If the precision is float16, activations of this model overflow on these documents: give model.dtype bfloat16 or "
    "float32"
)
FINALISTS = 5
"""Number of candidates that are evaluated on the validation documents, in addition to closed forms."""


@dataclass
class JobWatcher:
    """Callbacks for the progress of a job; each may be replaced."""

    phase: Callable[[str], None] = lambda text: None
    problem: Callable[[SearchProblem], None] = lambda problem: None
    """Called once, before the first candidate."""
    candidate: Callable[[SearchState], None] = lambda state: None
    scored: Callable[[str, int, int], None] = lambda part, done, total: None
    documents: Watch | None = None
    estimate: Callable[[dict[str, Any]], None] = lambda estimate: None
    """Called once, before the first candidate, where an estimate can be made."""
    check: Callable[[], None] = lambda: None
    """Called while a strategy proposes; may raise to stop the job."""


@dataclass
class JobResult:
    """The result of a job, from which its report is made."""

    problem: SearchProblem
    samples: Samples
    state: SearchState
    methods: dict[str, Factors] = field(default_factory=dict)
    """Factors with which the winner is compared, by name; empty before the choice."""
    finalists: dict[str, Factors] = field(default_factory=dict)
    validation: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the validation documents, by name of method or finalist."""
    held_out: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the held-out documents, by name of method or of the winner."""
    held_out_text: dict[str, Evaluation] = field(default_factory=dict)
    """Evaluations on the plain text of the held-out documents, if the objective is not perplexity."""
    short: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Mean loss in windows of the original length, of each held-out document, of the winner and the untouched model by
    name; empty where short texts have no limit."""
    windows: list[Evaluation] = field(default_factory=list)
    """All evaluations in such windows, but for those of the search itself."""
    unlimited: Evaluation | None = None
    """On the held-out documents, of the candidate that was best in the search without regard to that limit."""
    divergence: dict[str, Evaluation] = field(default_factory=dict)
    """Divergence from the untouched model in short texts, by name of method or of the winner."""
    winner: str = ""
    """Name of the finalist or method that is best on the validation documents; empty before the choice."""
    interrupted: bool = False
    estimate: dict[str, Any] | None = None
    """What was expected, as JSON; see :func:`factor_search.search.estimate.estimate_search`."""
    seconds: float | None = None
    """From the beginning to the end of the job."""
    peak_memory: int | None = None
    """Bytes that a process with the model used at most."""
    continued: bool = False
    """Whether some evaluations are of an earlier run, which ``seconds`` leaves out."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What is known of the model and the environment with which the held-out documents were measured."""

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
        return self.methods | self.finalists


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
    guard = None
    if spec.short_window is not None:
        watcher.phase("measuring the untouched model on short texts")
        deciding = len(samples.search.samples) + len(samples.validation.samples)
        guard = Guard.of(
            spec.short_window.at_most,
            problem.untouched[1],
            problem.geometry.original_length,
            evaluator,
            samples.search,
            deciding=deciding,
            held_out=len(samples.held_out.samples),
        )
    watcher.phase("searching")
    state = search(
        problem.strategy(len(samples.search.samples), watcher.check),
        evaluator,
        samples.search,
        spec.budget,
        watcher.candidate,
        error_rate=spec.racing_error_rate,
        original_length=problem.geometry.original_length,
        guard=guard,
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


def measured_with(result: JobResult, evaluator: Evaluator, identity: Mapping[str, str]) -> Mapping[str, str]:
    """Return the identity with which the held-out documents were measured.

    Evaluations of an earlier run may be those of another kind of device, or of other releases. Their keys say so, and
    only what every key knows is returned then.

    Args:
        result: of :func:`search_and_measure`.
        evaluator: the one that it was given.
        identity: of the loaded model, and its environment.
    """
    held_out = result.samples.held_out
    if all(evaluation.key == evaluator.key(evaluation.factors, held_out) for evaluation in result.held_out.values()):
        return identity
    return {name: identity[name] for name in EARLIER_IDENTITY}


def finalists(state: SearchState) -> list[Factors]:
    """Return the best candidates on the search documents, and the best after 1/2, 1/4 and 1/8 of the candidates.

    The longer a search runs, the more its best candidate overfits the search documents. An earlier best may be better
    on other documents, while the best candidates at the end are very similar to each other. With a limit on short texts
    the best ones leave more and more room below it come first, since other documents decide whether they hold it.
    """
    measured = [one for one in state.candidates.values() if state.judged(one).outcome in (OK, PRUNED)]
    with_room = [] if state.guard is None else state.guard.with_room(measured)
    # Most documents first. The sort is stable, so ties keep their order.
    measured.sort(key=lambda one: (-len(one.losses), state.judged(one).summary.loss))
    ranked = [evaluation.factors for evaluation in measured]
    earlier = []
    for share in (2, 4, 8):
        until = [best.factors for count, best in state.best_at if count <= len(state.candidates) / share]
        earlier += until[-1:]
    return list(dict.fromkeys([*with_room, *ranked[:2], *earlier, *ranked[2:]]))[:FINALISTS]


def _choose(result: JobResult, evaluator: Evaluator, watcher: JobWatcher) -> None:
    """Choose the winner on the validation documents, and measure it and closed forms on the held-out documents."""
    problem = result.problem
    result.methods = problem.methods | problem.best_others(result.state.candidates)
    known = set(result.methods.values())
    best = enumerate(finalists(result.state), start=1)
    result.finalists = {f"found-{n}": factors for n, factors in best if factors not in known}
    watcher.phase("choosing on validation documents")
    validation = _score(result.candidates, result.samples.validation, evaluator, watcher)
    able = [name for name in validation if problem.may_win(result.candidates[name])]
    if (guard := result.state.guard) is not None:
        able = _within(guard, able, result, evaluator)
    winner = min(able, key=lambda name: validation[name].loss)
    watcher.phase("measuring on held-out documents")
    reported = result.methods | {winner: result.candidates[winner]}
    held_out = _score(reported, result.samples.held_out, evaluator, watcher)
    if result.samples.held_out_text is not None:
        watcher.phase("measuring on the plain text of held-out documents")
        result.held_out_text = _score(reported, result.samples.held_out_text, evaluator, watcher)
    if result.state.guard is not None:
        untouched, factors = problem.untouched
        measured = {untouched: factors, winner: result.candidates[winner]}
        result.short = _short(measured, result, result.samples.held_out, evaluator)
        unlimited = _without_limit(result.state, result.candidates[winner])
        result.unlimited = next(iter(evaluator.evaluate_all([unlimited], result.samples.held_out)))
    short = short_texts(problem, result.samples)
    watcher.phase("comparing predictions in short texts with those of the untouched model")
    changed = {name: factors for name, factors in reported.items() if factors != short.reference}
    result.divergence = _score(changed, short, evaluator, watcher)
    result.validation, result.held_out, result.winner = validation, held_out, winner


def _without_limit(state: SearchState, winner: Factors) -> Factors:
    """The candidate with the lowest loss, in pairs with the winner: few were evaluated on all documents."""
    measured = [one for one in state.candidates.values() if one.outcome in (OK, PRUNED)]
    known = state.candidates.get(winner)
    if known is None or not known.losses:  # a closed form that is not in the space
        return min(measured, key=lambda one: (-len(one.losses), one.summary.loss)).factors
    return min(measured, key=lambda one: mean_difference(one.losses, known.losses)).factors


def _within(guard: Guard, able: list[str], result: JobResult, evaluator: Evaluator) -> list[str]:
    """The names of those that may win and hold the limit on short texts."""
    problem = result.problem
    untouched, reference = problem.untouched  # which would hold any limit
    others = {name: result.candidates[name] for name in able if name != untouched} or {untouched: reference}
    parts = (result.samples.search, result.samples.validation)
    deciding = SampleSet("deciding", tuple(sample for part in parts for sample in part.samples))
    short = _short({untouched: reference} | others, result, deciding, evaluator)
    if untouched not in short or not (measured := {name: short[name] for name in others if name in short}):
        return list(others)
    return guard.within(measured, short[untouched])


def _short(
    candidates: dict[str, Factors], result: JobResult, samples: SampleSet, evaluator: Evaluator
) -> dict[str, tuple[float, ...]]:
    """The mean loss in short windows of each document, by name; without those that have no finite loss."""
    windows = Windows.of(samples, result.problem.geometry.original_length, OTHER_WINDOWS)
    evaluations = list(evaluator.evaluate_all(list(candidates.values()), windows.samples))
    result.windows += evaluations
    found = zip(candidates, evaluations, strict=True)
    return {name: windows.by_document(one) for name, one in found if one.outcome == OK}


def _score(
    candidates: dict[str, Factors], samples: SampleSet, evaluator: Evaluator, watcher: JobWatcher
) -> dict[str, Evaluation]:
    scored = {}
    evaluations = evaluator.evaluate_all(list(candidates.values()), samples)
    for number, (name, evaluation) in enumerate(zip(candidates, evaluations, strict=True), start=1):
        scored[name] = evaluation
        watcher.scored(samples.part, number, len(candidates))
    return scored
