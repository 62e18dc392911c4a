"""How far a search has come, in figures for people."""

from typing import Any

from factor_search.measure.evaluation import OK
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.spec import BudgetSpec


def search_progress(problem: SearchProblem, state: SearchState) -> dict[str, Any]:
    """The figures of a running search, as JSON.

    Perplexities are of candidates evaluated on all search documents, and null before there is one.
    """
    best = state.best
    closed_form, perplexity = _best_closed_form(problem, state)
    return {
        "generation": state.generation,
        "candidates": len(state.candidates),
        "candidates_budget": problem.spec.budget.candidates,
        "evaluations": len(state.evaluations),
        "tokens": state.tokens,
        "seconds": state.seconds,
        "best_perplexity": best.summary.perplexity if best is not None and best.outcome == OK else None,
        "closed_form": closed_form,
        "closed_form_perplexity": perplexity,
        "share": _share_spent(problem.spec.budget, state),
    }


def _share_spent(budget: BudgetSpec, state: SearchState) -> float:
    """Share of the budget that will run out first, 0 to 1; 0 where only ``no_improvement`` ends the search."""
    limits = (
        (len(state.candidates), budget.candidates),
        (state.tokens, budget.tokens),
        (state.seconds, budget.seconds),
    )
    return min(max((spent / limit for spent, limit in limits if limit), default=0.0), 1.0)


def _best_closed_form(problem: SearchProblem, state: SearchState) -> tuple[str | None, float | None]:
    """Name and perplexity of the best closed form that the search has evaluated on all its documents."""
    known = problem.evaluations_of(problem.forms, state.candidates)
    measured = {name: evaluation for name, evaluation in known.items() if evaluation.outcome == OK}
    if not measured:
        return None, None
    name = min(measured, key=lambda name: measured[name].loss)
    return name, measured[name].summary.perplexity
