"""The search loop asks a strategy, evaluates its candidates and tells the results, until the budget ends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED, Evaluation, Evaluator
from factor_search.measure.statistics import paired_difference, summarise
from factor_search.search.guard import Guard
from factor_search.search.racing import Referee
from factor_search.search.strategies.contract import Generation, Result, Strategy
from factor_search.spec import BudgetSpec
from factor_search.text.samples import SampleSet


@dataclass
class SearchState:
    """The state of a search, which is updated in place."""

    generation: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    """All evaluations in the order proposed; a candidate occurs again when it is evaluated on more documents."""
    candidates: dict[Factors, Evaluation] = field(default_factory=dict)
    """The distinct candidates, with the last evaluation of each."""
    best: Evaluation | None = None
    """The evaluation with the lowest loss among those on most documents."""
    tokens: int = 0
    """Tokens scored, including those of stored results."""
    seconds: float = 0.0
    """Seconds of evaluation, including those of stored results."""
    generations: list[int] = field(default_factory=list)
    """Number of evaluations at the end of each generation."""
    ended_by: str = ""
    """``strategy``, ``candidates``, ``tokens``, ``seconds``, ``no_improvement`` or ``interrupt``; ``diverged`` if every
    candidate of the first generation did."""
    best_at: list[tuple[int, Evaluation]] = field(default_factory=list)
    """Every best evaluation so far, with the number of candidates when it was found."""
    guard: Guard | None = None
    """The limit on short texts, if there is one."""

    def __post_init__(self) -> None:
        if self.guard is not None:
            self.spent(*self.guard.spent)

    def measure_short(self, candidates: Sequence[Factors], evaluator: Evaluator) -> None:
        """Measure candidates in short texts, where these have a limit."""
        if self.guard is not None:
            for tokens, seconds in self.guard.measure(candidates, evaluator):
                self.spent(tokens, seconds)

    def judged(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation as candidates are compared."""
        return evaluation if self.guard is None else self.guard.judged(evaluation)

    def short_losses(self, evaluation: Evaluation, original_length: int | None) -> Sequence[float]:
        """Mean losses of documents in short texts: in windows if they have a limit, else on the first tokens.

        Empty where they were not measured.
        """
        if self.guard is not None:
            return self.guard.known.get(evaluation.factors, ())
        return evaluation.losses_at.get(original_length or 0, ())

    def spent(self, tokens: int, seconds: float) -> None:
        """Add the cost of a measurement."""
        self.tokens += tokens
        self.seconds += seconds

    def saw(self, evaluation: Evaluation) -> None:
        """Add an evaluation."""
        earlier = self.candidates.get(evaluation.factors)
        self.evaluations.append(evaluation)
        self.candidates[evaluation.factors] = evaluation
        # An evaluation that continues an earlier one contains its tokens and seconds.
        self.spent(
            max(sum(evaluation.tokens) - (sum(earlier.tokens) if earlier else 0), 0),
            max(evaluation.seconds - (earlier.seconds if earlier else 0.0), 0.0),
        )
        if self.best is None or _better(self.judged(evaluation), self.judged(self.best)):
            self.best = evaluation
            self.best_at.append((len(self.candidates), evaluation))


def search(
    strategy: Strategy,
    evaluator: Evaluator,
    samples: SampleSet,
    budget: BudgetSpec,
    on_candidate: Callable[[SearchState], None] = lambda state: None,
    *,
    error_rate: float | None = None,
    original_length: int | None = None,
    guard: Guard | None = None,
) -> SearchState:
    """Run a search until its strategy or its budget ends.

    A keyboard interrupt ends the search at the last finished candidate. If the search runs again with stored
    evaluations, it proposes the same candidates in the same order.

    Args:
        strategy: proposes candidates.
        evaluator: evaluates candidates.
        samples: the search documents.
        budget: the limits of the search.
        on_candidate: called after each evaluation.
        error_rate: error rate of racing, the probability that a candidate better than the best is stopped early; None
            stops no candidate.
        original_length: original length of the model in tokens, for the loss within it.
        guard: a limit on short texts.
    """
    state = SearchState(guard=guard)
    referee = Referee(len(samples.samples), error_rate)
    try:
        while not (ended_by := _exhausted(budget, state) or _stagnant(budget, state)):
            generation = strategy.ask()
            if not generation.candidates:
                ended_by = "candidates" if len(state.candidates) == budget.candidates else "strategy"
                break
            proposed = _affordable(generation, budget, state)
            if not proposed:
                ended_by = "candidates"
                break
            known = _documents_known(state)
            race = referee.race(generation.documents)
            evaluations: list[Evaluation] = []
            state.measure_short(proposed, evaluator)
            for evaluation in evaluator.evaluate_all(proposed, samples, race):
                evaluations.append(evaluation)
                state.saw(evaluation)
                on_candidate(state)
                if _exhausted(budget, state):
                    break
            judged = [state.judged(evaluation) for evaluation in evaluations]
            for evaluation in judged:
                referee.saw(evaluation)
            if state.generation == 0 and len(evaluations) > 1 and all(one.outcome == DIVERGED for one in evaluations):
                ended_by = "diverged"  # the closed forms too, so the model itself does
                break
            strategy.tell([_result(one, referee, state.short_losses(one, original_length)) for one in judged])
            state.generations.append(len(state.evaluations))
            state.generation += 1
            if len(proposed) < len(generation.candidates) and _documents_known(state) <= known:
                ended_by = "candidates"  # the strategy would repeat known candidates for ever
                break
    except KeyboardInterrupt:
        ended_by = "interrupt"
    state.ended_by = ended_by
    return state


def _affordable(generation: Generation, budget: BudgetSpec, state: SearchState) -> Sequence[Factors]:
    """Return the candidates before the first new one that exceeds the budget."""
    if budget.candidates is None:
        return generation.candidates
    known = set(state.candidates)
    for position, factors in enumerate(generation.candidates):
        known.add(factors)
        if len(known) > budget.candidates:
            return generation.candidates[:position]
    return generation.candidates


def _better(one: Evaluation, other: Evaluation) -> bool:
    """Return whether an evaluation is better than another: on more documents, or with a lower loss on as many."""
    if (len(one.losses), one.outcome == OK) != (len(other.losses), other.outcome == OK):
        return (len(one.losses), one.outcome == OK) > (len(other.losses), other.outcome == OK)
    return bool(one.losses) and one.summary.loss < other.summary.loss


def _result(evaluation: Evaluation, referee: Referee, short: Sequence[float]) -> Result:
    if evaluation.outcome not in (OK, PRUNED):
        return Result(float("inf"))
    short_loss = summarise(short, [1] * len(short)).loss if short else None
    return Result(referee.estimate(evaluation), evaluation.losses, short_loss)


def _exhausted(budget: BudgetSpec, state: SearchState) -> str:
    if budget.tokens is not None and state.tokens >= budget.tokens:
        return "tokens"
    if budget.seconds is not None and state.seconds >= budget.seconds:
        return "seconds"
    return ""


def _documents_known(state: SearchState) -> int:
    """Count candidates and their evaluated documents; a generation that does not raise this number is useless."""
    return len(state.candidates) + sum(len(evaluation.losses) for evaluation in state.candidates.values())


def _stagnant(budget: BudgetSpec, state: SearchState) -> str:
    """Return ``no_improvement`` if the last so many candidates brought no improvement beyond the noise, else ''."""
    if budget.no_improvement is None or state.best is None:
        return ""
    then = len(state.candidates) - budget.no_improvement
    earlier = [best for count, best in state.best_at if count <= then]
    improved = not earlier or _improved(state.judged(state.best), state.judged(earlier[-1]))
    return "" if improved else "no_improvement"


def _improved(best: Evaluation, earlier: Evaluation) -> bool:
    """Return whether the best improves on an earlier best by more than one standard error, on common documents."""
    count = min(len(best.losses), len(earlier.losses))
    if count == 0:
        return len(best.losses) > 0
    gain, error = paired_difference(earlier.losses[:count], best.losses[:count], best.tokens[:count])
    return gain > (0 if math.isnan(error) else error)
