"""Plots of a plan's report, each drawn on axes that it is given."""

from typing import TYPE_CHECKING, Any

import numpy as np

from factor_search.report.palette import FOUND_COLOUR, METHOD_COLOURS
from factor_search.report.plots import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 20
"""A running mean is over a twentieth of all steps."""


def draw_losses(axes: "Axes", stage: dict[str, Any]) -> None:
    """Loss of each step of a fine-tuning, and its running mean over the last steps."""
    steps = [step for step, _ in stage["losses"]]
    losses = np.array([loss for _, loss in stage["losses"]])
    width = max(len(losses) // SMOOTHED, 1)
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    starts = np.maximum(np.arange(1, len(losses) + 1) - width, 0)
    mean = (sums[1:] - sums[starts]) / (np.arange(1, len(losses) + 1) - starts)
    axes.plot(steps, losses, color="#bbb", linewidth=0.8, label="step")
    axes.plot(steps, mean, color=FOUND_COLOUR, linewidth=2, label=f"mean of {width}")
    label(axes, "step", "loss, nats per token")


def draw_searches(axes: "Axes", report: dict[str, Any]) -> None:
    """Rescale factors that the searches of a plan found, over the rotary pairs."""
    colours = [FOUND_COLOUR, *METHOD_COLOURS.values()]
    for number, stage in enumerate(report["stages"]):
        colour, factors = colours[number % len(colours)], stage["factors"]
        axes.plot(factors["rescale_factors"], color=colour, linewidth=2, label=stage["name"])
        axes.axhline(factors["scale"], color=colour, linewidth=0.8, linestyle=":")
    label(axes, "rotary pair i", "rescale factor", log=True)
