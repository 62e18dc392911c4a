"""The three plots of a report, each drawn on axes that it is given."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from factor_search.palette import FOUND_COLOUR, METHOD_COLOURS


def draw_factors(axes: Axes, report: dict[str, Any]) -> None:
    """Rescale factors of the closed forms and of what was found, over the rotary pairs."""
    critical = report["model"]["critical_dimension"] / 2
    for name, colour in METHOD_COLOURS.items():
        axes.plot(report["closed_forms"][name]["rescale_factors"], color=colour, linewidth=1.3, label=name)
    axes.plot(report["factors"]["rescale_factors"], color=FOUND_COLOUR, linewidth=2.5, label="found")
    axes.axhline(report["spec"]["target_length"] / report["model"]["original_length"], color="#888", linestyle=":")
    axes.axvline(critical, color="#888", linestyle="--", linewidth=0.8)
    axes.annotate("critical", (critical, 1.0), fontsize=8, color="#555", rotation=90)
    _label(axes, "rotary pair i", "rescale factor", log=True)


def draw_lengths(axes: Axes, report: dict[str, Any]) -> None:
    """Held-out perplexity of the first n tokens, for a ladder of lengths n."""
    axes.set_xscale("log", base=2)
    for row in reversed(report["results"]):
        found = row["name"] == "found"
        colour = FOUND_COLOUR if found else METHOD_COLOURS.get(row["name"])
        points = {int(length): value for length, value in row["perplexity_at"].items() if value is not None}
        if colour is None or not points:
            continue
        width = 2.5 if found else 1.3
        axes.plot(
            list(points),
            list(points.values()),
            color=colour,
            linewidth=width,
            marker="o",
            markersize=4,
            label=row["name"],
        )
        axes.set_xticks(list(points), [str(length) for length in points])
    _label(axes, "tokens", "perplexity", log=True)


def draw_search(axes: Axes, report: dict[str, Any]) -> None:
    """Every candidate's perplexity on the search documents, and the best so far."""
    known = [(n, value) for n, value in enumerate(report["search"]["perplexities"], start=1) if value is not None]
    best, running = [], float("inf")
    for _, value in known:
        running = min(running, value)
        best.append(running)
    numbers = [n for n, _ in known]
    axes.scatter(numbers, [value for _, value in known], s=9, color="#999", label="candidate")
    axes.step(numbers, best, where="post", color=FOUND_COLOUR, linewidth=2, label="best so far")
    for end in report["search"]["generations"][:-1]:
        axes.axvline(end + 0.5, color="#ddd", linewidth=0.7, zorder=0)
    spread = sorted(value for _, value in known)
    top = spread[int(0.95 * (len(spread) - 1))]  # a few wild candidates must not flatten the rest
    if top > running:
        axes.set_ylim(running - 0.06 * (top - running), top + 0.04 * (top - running))
    _label(axes, "candidate", "perplexity on search documents")


def _label(axes: Axes, x: str, y: str, *, log: bool = False) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.2, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
