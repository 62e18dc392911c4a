"""The tables of :mod:`bench.search_efficiency`, in Markdown."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.efficiency_metrics import (
    Figures,
    attainable,
    best_closed_form,
    by_closed_form_alone,
    figures,
    reached_for_good,
    rival,
    share_of_way,
)
from bench.efficiency_runs import CONTROL, ModelRuns

COLUMNS = (
    "strategy",
    "seed",
    "candidates",
    "full evaluations",
    "held-out perplexity at its end",
    "of what a job reports",
    "control's end reached after",
    "cheaper than control",
    "evolution's end reached after",
    "cheaper than evolution",
    "share at 20",
    "share at 40",
    "behind attainable, mnats",
    "standard errors",
    "validation above closed form, mnats",
    "standard errors before every closed form",
)


@dataclass(frozen=True)
class Bar:
    """A requirement for ``auto``, and the result."""

    text: str
    value: str
    reached: bool


def model_table(runs: ModelRuns) -> str:
    """The description of a model, and a row for each run."""
    name, goal = best_closed_form(runs), attainable(runs)
    form = runs.closed_forms[name]
    held_out_best = min(runs.published, key=lambda one: runs.published[one].perplexity)
    lines = [
        f"## {runs.model} ({runs.role})",
        "",
        f"A full evaluation is {runs.full_evaluation:,} tokens; a choice on the validation documents, which is not "
        f"counted, costs {runs.validation_tokens:,} a candidate.",
        f"Best published closed form on the validation documents: {name}, held-out perplexity {form.perplexity:.4f} "
        f"(best on the held-out ones: {held_out_best}, {runs.closed_forms[held_out_best].perplexity:.4f}).",
        f"Attainable: {goal.final.perplexity:.4f}, by {goal.name}, seed {goal.seed}.",
    ]
    for rival_name in (CONTROL, "evolution"):
        one = rival(rival_name, 0, runs)
        if one is not None:
            there = reached_for_good(one.points, one.final.perplexity) or one.tokens
            lines.append(
                f"The end of {rival_name}, {one.final.perplexity:.4f} after {_evaluations(one.tokens, runs)} full "
                f"evaluations, {by_closed_form_alone(one.final.perplexity, form)}; never worse after "
                f"{_evaluations(there, runs)}."
            )
    lines += ["", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_cells(figures(run, runs), runs)) for run in runs.runs]
    measured = sum(len(run.points) for run in runs.runs)
    changes = sum(run.changes for run in runs.runs)
    lines += ["", f"Measured on held-out documents: {measured:,} of {changes:,} recommendations."]
    lines.append(f"Share of the way that closed forms reach without a search: {_shares(runs)}.")
    return "\n".join(lines)


def _shares(runs: ModelRuns) -> str:
    """Closed forms by the share of the way, in nats, from the untouched model to the attainable, the best first."""
    goal, start = (math.log(one.perplexity) for one in (attainable(runs).final, runs.closed_forms["none"]))
    shares = {name: share_of_way(math.log(one.perplexity), start, goal) for name, one in runs.closed_forms.items()}
    ranked = sorted(shares, key=lambda name: -shares[name])
    return ", ".join(f"{name} {shares[name]:.0%}" for name in ranked[:5])


def _cells(one: Figures, runs: ModelRuns) -> list[str]:
    run = one.run
    return [
        run.name,
        str(run.seed),
        f"{run.candidates:,}",
        _evaluations(run.tokens, runs),
        f"{run.final.perplexity:.4f}",
        f"{run.reported.perplexity:.4f}",
        "not reached" if one.control_reached is None else _evaluations(one.control_reached, runs),
        _times(one.cheaper_than_control),
        "not reached" if one.evolution_reached is None else _evaluations(one.evolution_reached, runs),
        _times(one.cheaper_than_evolution),
        f"{one.shares[20]:.1%}",
        f"{one.shares[40]:.1%}",
        f"{1000 * one.behind:.2f} ± {1000 * one.behind_error:.2f}",
        f"{one.errors_behind:.1f}",
        f"{1000 * one.above_closed_form:+.2f}",
        f"{one.errors_before_forms:.1f}",
    ]


def bars(models: Sequence[ModelRuns]) -> list[Bar]:
    """The requirements for ``auto`` with its default budget, over all models and seeds."""
    auto = [figures(run, runs) for runs in models for run in runs.runs if run.name == "auto"]
    if not auto:
        return []
    control, was, evolution = (
        statistics.median(ratio or 0.0 for ratio in ratios)
        for ratios in (
            [one.cheaper_than_control for one in auto],
            [one.cheaper_than_control_was for one in auto],
            [one.cheaper_than_evolution for one in auto],
        )
    )
    at_20, at_40 = [[_least(one.shares[count]) for one in auto] for count in (20, 40)]
    behind = max(_most(one.errors_behind) for one in auto)
    own = max(_most(one.own_errors_behind) for one in auto)
    above = max(one.above_closed_form for one in auto)
    ahead = min(one.errors_before_forms for one in auto)
    median_20, worst_20, worst_40 = statistics.median(at_20), min(at_20), min(at_40)
    return [
        Bar(
            "cheaper than the control's whole run, median; at least 300 times",
            f"{control:.0f} times ({was:.0f} times cheaper than the control until it was at its end for good)",
            control >= 300,
        ),
        Bar(
            "cheaper than evolution's whole run, median; at least 100 times", f"{evolution:.0f} times", evolution >= 100
        ),
        Bar(
            "share of the way at 20 full evaluations, median; at least 95 %",
            f"{median_20:.1%} (worst {worst_20:.1%})",
            median_20 >= 0.95,
        ),
        Bar("share of the way at 20 full evaluations, worst; at least 90 %", f"{worst_20:.1%}", worst_20 >= 0.9),
        Bar(
            "share of the way at 40 full evaluations, worst; at least 95 %",
            f"{worst_40:.1%} (median {statistics.median(at_40):.1%})",
            worst_40 >= 0.95,
        ),
        Bar(
            "behind the attainable at its end, worst; at most 1 standard error of the difference in pairs",
            f"{behind:.2f} ({own:.2f} standard errors of the attainable's own loss over documents)",
            behind <= 1,
        ),
        Bar(
            "better than every closed form on held-out documents, in standard errors of the difference in pairs, "
            "worst; more than 2",
            f"{ahead:.1f}",
            ahead > 2,
        ),
        Bar(
            "validation loss above the best closed form's, worst; never above",
            f"{1000 * above:+.2f} mnats",
            above <= 0,
        ),
    ]


def bars_table(rows: Sequence[Bar]) -> str:
    """A row for each requirement; a run that did not get there counts as 0 times in a median."""
    lines = ["## auto with its default budget, over all models and seeds", "", _row(["required", "measured", "met"])]
    lines.append(_row(["---"] * 3))
    return "\n".join(lines + [_row([bar.text, bar.value, "yes" if bar.reached else "**no**"]) for bar in rows])


def _least(share: float) -> float:
    """Leave out models on which no search improves on the closed form, because no share is defined there."""
    return -math.inf if math.isnan(share) else share


def _most(errors: float) -> float:
    return math.inf if math.isnan(errors) else errors


def _evaluations(tokens: int, runs: ModelRuns) -> str:
    return f"{tokens / runs.full_evaluation:,.1f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:,.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
