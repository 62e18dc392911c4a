"""The search loop: ask, evaluate, tell, until the strategy or the budget ends."""

from collections.abc import Callable
from dataclasses import dataclass, field

from factor_search.evaluation import Evaluation, Evaluator
from factor_search.samples import SampleSet
from factor_search.spec import BudgetSpec
from factor_search.strategies import Strategy


@dataclass
class SearchState:
    """What is known so far; a new object is not made for each candidate."""

    generation: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    """In the order proposed."""
    best: Evaluation | None = None
    tokens: int = 0
    """Tokens evaluated, stored results included."""
    seconds: float = 0.0
    """Seconds spent evaluating, stored results included."""
    generations: list[int] = field(default_factory=list)
    """Candidates evaluated when each generation ended."""
    ended_by: str = ""
    """``strategy``, ``candidates``, ``tokens``, ``seconds`` or ``interrupt``."""


def search(
    strategy: Strategy,
    evaluator: Evaluator,
    samples: SampleSet,
    budget: BudgetSpec,
    on_candidate: Callable[[SearchState], None] = lambda state: None,
) -> SearchState:
    """Run a search to its end.

    A keyboard interrupt ends it at the last finished candidate. The same search run again on an evaluator that
    remembers gives the same candidates in the same order.
    """
    state = SearchState()
    try:
        while not (ended_by := _exhausted(budget, state)):
            proposed = strategy.ask()
            if not proposed:
                ended_by = "strategy"
                break
            if budget.candidates is not None:
                proposed = proposed[: budget.candidates - len(state.evaluations)]
            losses: list[float] = []
            for evaluation in evaluator.evaluate_all(proposed, samples):
                losses.append(evaluation.loss)
                _record(state, evaluation)
                on_candidate(state)
                if _exhausted(budget, state):
                    break
            strategy.tell(losses)
            state.generations.append(len(state.evaluations))
            state.generation += 1
    except KeyboardInterrupt:
        ended_by = "interrupt"
    state.ended_by = ended_by
    return state


def _record(state: SearchState, evaluation: Evaluation) -> None:
    state.evaluations.append(evaluation)
    state.tokens += sum(evaluation.tokens)
    state.seconds += evaluation.seconds
    if state.best is None or evaluation.loss < state.best.loss:
        state.best = evaluation


def _exhausted(budget: BudgetSpec, state: SearchState) -> str:
    if budget.candidates is not None and len(state.evaluations) >= budget.candidates:
        return "candidates"
    if budget.tokens is not None and state.tokens >= budget.tokens:
        return "tokens"
    if budget.seconds is not None and state.seconds >= budget.seconds:
        return "seconds"
    return ""
