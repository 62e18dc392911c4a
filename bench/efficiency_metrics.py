"""What a user gains from a strategy, computed from the measured points of its runs by pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.efficiency_runs import CONTROL, Measured, ModelRuns, Point, Run
from factor_search.measure.statistics import paired_difference, summarise


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A run compared with the control, evolution, the closed forms and the attainable perplexity."""

    run: Run
    control_reached: int | None
    """Tokens after which the run is never worse than the control's end; None if it ends worse."""
    cheaper_than_control: float | None
    """Tokens of the control's complete run, divided by ``tokens``."""
    cheaper_than_control_was: float | None
    """The same, counting the control only up to where it was never worse than at its end."""
    evolution_reached: int | None
    cheaper_than_evolution: float | None
    shares: dict[int, float]
    """Share of the way from the best closed form to the attainable perplexity, by full evaluations spent."""
    behind: float
    """Held-out loss of what a job would report minus that of the attainable run, in nats per token."""
    behind_error: float
    """The paired standard error of ``behind`` over documents; NaN for a single document."""
    attainable_error: float
    """Standard error over documents of the attainable run's held-out loss, in nats per token."""
    above_closed_form: float
    """Validation loss of what a job would report minus that of the best closed form, in nats per token."""

    errors_before_forms: float
    """Paired standard errors on held-out documents by which what a job would report is better than each closed form,
    of the one that is nearest; negative if one is better."""

    @property
    def errors_behind(self) -> float:
        """``behind`` in paired standard errors."""
        return _in_errors(self.behind, self.behind_error)

    @property
    def own_errors_behind(self) -> float:
        """``behind`` in standard errors of the attainable run's loss."""
        return _in_errors(self.behind, self.attainable_error)


def figures(run: Run, runs: ModelRuns) -> Figures:
    """All comparisons of a run."""
    control, evolution = rival(CONTROL, run.seed, runs), rival("evolution", run.seed, runs)
    control_reached, evolution_reached = (
        reached_for_good(run.points, one.final.perplexity) if one else None for one in (control, evolution)
    )
    form, goal = runs.closed_forms[best_closed_form(runs)], attainable(runs).final
    best = summarise(goal.held_out_losses, runs.held_out_tokens)
    if run.reported.held_out_losses:
        behind, error = paired_difference(run.reported.held_out_losses, goal.held_out_losses, runs.held_out_tokens)
    else:
        behind, error = math.inf, math.nan
    return Figures(
        run=run,
        control_reached=control_reached,
        cheaper_than_control=_ratio(control.tokens if control else None, control_reached),
        cheaper_than_control_was=_ratio(
            reached_for_good(control.points, control.final.perplexity) if control else None, control_reached
        ),
        evolution_reached=evolution_reached,
        cheaper_than_evolution=_ratio(evolution.tokens if evolution else None, evolution_reached),
        shares={
            count: share_of_way(in_force(run.points, count * runs.full_evaluation), form.perplexity, goal.perplexity)
            for count in (20, 40)
        },
        behind=behind,
        behind_error=error,
        attainable_error=best.standard_error / best.perplexity,
        above_closed_form=run.reported.validation_loss - form.validation_loss,
        errors_before_forms=_errors_before(runs.published, run.reported, runs.held_out_tokens),
    )


def _errors_before(forms: Mapping[str, Measured], one: Measured, tokens: Sequence[int]) -> float:
    if not one.held_out_losses:
        return -math.inf
    losses = [form.held_out_losses for form in forms.values() if form.held_out_losses]
    return min(_in_errors(*paired_difference(other, one.held_out_losses, tokens)) for other in losses)


def rival(name: str, seed: int, runs: ModelRuns) -> Run | None:
    """The run to compare with: the one of the same seed if there is one, else the first."""
    named = [run for run in runs.runs if run.name == name]
    return next((run for run in named if run.seed == seed), named[0] if named else None)


def best_closed_form(runs: ModelRuns) -> str:
    """The published closed form with the lowest validation loss, as a user could choose it."""
    return min(runs.published, key=lambda name: runs.published[name].validation_loss)


def attainable(runs: ModelRuns) -> Run:
    """The run whose final candidate is best on the held-out documents."""
    return min(runs.runs, key=lambda run: run.final.perplexity)


def reached_for_good(points: Sequence[Point], wanted: float) -> int | None:
    """Tokens of the first point after which none is worse than the wanted perplexity; None if the last one is."""
    reached = None
    for point in points:
        if point.perplexity > wanted:
            reached = None
        elif reached is None:
            reached = point.tokens
    return reached


def in_force(points: Sequence[Point], tokens: int) -> float:
    """Perplexity of the recommendation after a number of tokens; infinite before the first recommendation."""
    return next((point.perplexity for point in reversed(points) if point.tokens <= tokens), math.inf)


def share_of_way(perplexity: float, start: float, goal: float) -> float:
    """1 at the goal, 0 at the start, negative if worse than the start; NaN if the goal is not better than the start."""
    return (start - perplexity) / (start - goal) if goal < start else math.nan


def _in_errors(difference: float, error: float) -> float:
    return 0.0 if difference == 0 else difference / error if error else math.inf


def _ratio(tokens: int | None, reached: int | None) -> float | None:
    return tokens / reached if tokens is not None and reached else None


def by_closed_form_alone(wanted: float, form: Measured) -> str:
    """A phrase saying whether the best closed form alone reaches a perplexity."""
    return "which the best closed form reaches alone" if form.perplexity <= wanted else "which only a search reaches"
