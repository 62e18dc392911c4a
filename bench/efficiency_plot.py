"""A plot of the recommendation's held-out perplexity over the tokens evaluated."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.efficiency_metrics import attainable, best_closed_form
from bench.efficiency_runs import CONTROL, CONTROL_2, ModelRuns
from factor_search.report.palette import FOUND_COLOUR

COLOURS = {
    CONTROL: "#000000",
    CONTROL_2: "#777777",
    "evolution": "#0072B2",
    "cma": "#009E73",
    "tpe": "#CC79A7",
    "nsga2": "#E69F00",
    "random": "#56B4E9",
    "auto": FOUND_COLOUR,
}


def draw(runs: ModelRuns, file: Path) -> None:
    """Draw a line for each run; further seeds of a strategy are thin."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    drawn = set()
    for run in runs.runs:
        tokens = [point.tokens for point in run.points] + [run.tokens]
        perplexities = [point.perplexity for point in run.points] + [run.points[-1].perplexity]
        axes.step(
            tokens,
            perplexities,
            where="post",
            color=COLOURS[run.name.split(",")[0]],
            linestyle="--" if "," in run.name else "-",
            linewidth=0.7 if run.name in drawn else 1.8,
            label=None if run.name in drawn else run.name,
        )
        drawn.add(run.name)
    name = best_closed_form(runs)
    form, goal = runs.closed_forms[name].perplexity, attainable(runs).final.perplexity
    axes.axhline(form, color="#888", linestyle=":", label=f"best closed form ({name})")
    axes.axhline(goal, color="#888", linestyle="-.", label="attainable")
    worst = max([form, *(run.final.perplexity for run in runs.runs if math.isfinite(run.final.perplexity))])
    # a square root separates strategies close to the attainable perplexity and still shows the control
    axes.set_yscale(
        "function",
        functions=(
            lambda y: np.sign(y - goal) * np.sqrt(np.abs(y - goal)),
            lambda root: goal + root * np.abs(root),
        ),
    )
    # first recommendations may be far above
    axes.set_ylim(goal - 0.002 * (worst - goal), worst + 0.3 * (worst - goal))
    axes.set_xscale("log")
    axes.set_xlabel(f"tokens evaluated in the search (a full evaluation is {runs.full_evaluation:,})")
    axes.set_ylabel("held-out perplexity of what is recommended")
    axes.set_title(f"{runs.model} ({runs.role})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=120, facecolor="white")
