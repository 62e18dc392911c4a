"""Draws the plots of reports: factors, perplexity by length, the course of the search, ladders and passkeys."""

import itertools
from typing import TYPE_CHECKING, Any

from factor_search.methods import AS_CONFIGURED, METHODS, USUAL
from factor_search.report.document import FOUND, measures
from factor_search.report.palette import FOUND_COLOUR, METHOD_COLOURS, OTHER_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_factors(axes: "Axes", report: dict[str, Any]) -> None:
    """Plot the rescale factors of the closed forms and of the winner over the rotary pairs."""
    critical = report["model"]["critical_dimension"] / 2
    forms = report["closed_forms"]
    for name, colour in _colours(report).items():
        if name in forms:  # a job may compare with some of them only
            axes.plot(forms[name]["rescale_factors"], color=colour, linewidth=1.3, label=name)
    axes.plot(report["factors"]["rescale_factors"], color=FOUND_COLOUR, linewidth=2.5, label="found")
    scale = report["spec"]["target_length"] / report["model"]["original_length"]
    axes.axhline(report["spec"]["space"].get("scale") or scale, color="#888", linestyle=":")
    axes.axvline(critical, color="#888", linestyle="--", linewidth=0.8)
    axes.annotate("critical", (critical, 1.0), fontsize=8, color="#555", rotation=90)
    label(axes, "rotary pair i", "rescale factor", log=True)


def draw_lengths(axes: "Axes", report: dict[str, Any]) -> None:
    """Plot the held-out perplexity of the first n tokens, for a ladder of lengths n."""
    axes.set_xscale("log", base=2)
    colours = _colours(report)
    for row in reversed(report["results"]):
        found = row["name"] == "found"
        colour = FOUND_COLOUR if found else colours.get(row["name"])
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
    label(axes, "tokens", "perplexity", log=True)


def _colours(report: dict[str, Any]) -> dict[str, str]:
    """Colours of the closed forms that are drawn, by name: also the best of those that are not usual."""
    others = (row["name"] for row in report["results"] if row["name"] in METHODS and row["name"] not in USUAL)
    return METHOD_COLOURS | dict(zip(others, OTHER_COLOURS, strict=False))


def draw_search(axes: "Axes", report: dict[str, Any]) -> None:
    """Plot the perplexity of every evaluation on the search documents, and the best so far on all of them."""
    complete, pruned = _evaluations(report)
    if pruned:
        marks = axes.scatter(list(pruned), list(pruned.values()), s=9, label="stopped early")
        marks.set(facecolor="none", edgecolor="#aaa", linewidth=0.6)
    if complete:
        best = list(itertools.accumulate(complete.values(), min))
        axes.scatter(list(complete), list(complete.values()), s=9, color="#777", label="candidate")
        axes.step(list(complete), best, where="post", color=FOUND_COLOUR, linewidth=2, label="best so far")
    for end in report["search"]["generations"][:-1]:
        axes.axvline(end + 0.5, color="#ddd", linewidth=0.7, zorder=0)
    spread = sorted((complete or pruned).values())
    low, top = spread[0], spread[int(0.95 * (len(spread) - 1))]  # a few wild candidates must not flatten the rest
    if top > low:
        axes.set_ylim(low - 0.06 * (top - low), top + 0.04 * (top - low))
    label(axes, "evaluation", f"{measures(report)} on search documents")


def draw_front(axes: "Axes", report: dict[str, Any]) -> None:
    """Plot the perplexity at the target length over that of short texts, of the candidates that none beats at both."""
    points = report["front"]
    axes.plot(
        [point["short_perplexity"] for point in points],
        [point["perplexity"] for point in points],
        color=FOUND_COLOUR,
        marker="o",
        markersize=4,
        linewidth=1,
        label="candidates that none beats at both",
    )
    label(axes, "perplexity within the original length", "perplexity at the target length")


def draw_ladder(axes: "Axes", ladder: dict[str, Any]) -> None:
    """Plot perplexity with its standard error by length (see :meth:`factor_search.measure.ladder.Ladder.as_json`).

    The plot shows all candidates, the closed forms that have a colour, and the one that is best at the largest length.
    """
    axes.set_xscale("log", base=2)
    lengths, best = ladder["lengths"], ladder["best_closed_forms"]
    forms = set(METHODS) | {AS_CONFIGURED}
    names = list(dict.fromkeys(rung["name"] for rung in ladder["rungs"]))
    plotted = [name for name in names if name not in forms or name in {*METHOD_COLOURS, best.get(str(lengths[-1]))}]
    for name in reversed(plotted):
        points = [rung for rung in ladder["rungs"] if rung["name"] == name and rung["perplexity"] is not None]
        candidate = name not in forms
        axes.errorbar(
            [rung["length"] for rung in points],
            [rung["perplexity"] for rung in points],
            yerr=[rung["standard_error"] or 0.0 for rung in points],
            color=FOUND_COLOUR if name == FOUND else METHOD_COLOURS.get(name),
            linewidth=2.5 if candidate else 1.3,
            elinewidth=0.8,
            marker="o",
            markersize=4,
            label=name,
        )
    axes.set_xticks(lengths, [str(length) for length in lengths])
    label(axes, "tokens", "perplexity", log=True)


def draw_passkey(axes: "Axes", passkey: dict[str, Any]) -> None:
    """Plot accuracy by length and depth as a heat map (see :func:`factor_search.measure.passkey.as_json`)."""
    lengths, depths = passkey["lengths"], passkey["depths"]
    accuracy = {(cell["length"], cell["depth"]): cell["accuracy"] for cell in passkey["cells"]}
    rows = [[accuracy[length, depth] for length in lengths] for depth in depths]
    axes.imshow(rows, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            axes.annotate(
                f"{value:.0%}",
                (column, row),
                ha="center",
                va="center",
                fontsize=8,
                color="#000" if value > 0.6 else "#fff",  # viridis ends in yellow
            )
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    label(axes, "tokens", "depth of the passkey")


def _evaluations(report: dict[str, Any]) -> tuple[dict[int, float], dict[int, float]]:
    """Return perplexities by evaluation number: first those on all search documents, then those of pruned ones."""
    perplexities, total = report["search"]["perplexities"], len(report["documents"]["search"])
    documents = report["search"].get("documents") or [total] * len(perplexities)  # reports written before racing
    complete: dict[int, float] = {}
    pruned: dict[int, float] = {}
    for number, (value, count) in enumerate(zip(perplexities, documents, strict=True), start=1):
        if value is not None:
            (complete if count == total else pruned)[number] = value
    return complete, pruned


def label(axes: "Axes", x: str, y: str, *, log: bool = False) -> None:
    """Label the axes and remove what distracts from the data."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

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
