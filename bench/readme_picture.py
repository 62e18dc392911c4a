"""The README's picture from a demo's report: ``python -m bench.readme_picture REPORT.json PICTURE.svg``."""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from factor_search.report_html import FOUND_COLOUR, PLOTTED_METHODS


def main() -> None:
    source, destination = map(Path, sys.argv[1:3])
    report = json.loads(source.read_text())
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths: list[int] = []
    for row in report["results"]:
        if row["name"] == "found" or row["name"] in PLOTTED_METHODS:
            lengths = sorted(map(int, row["perplexity_at"]))
            values = [row["perplexity_at"][str(length)] for length in lengths]
            left.plot(lengths, values, marker="o", markersize=3, **style_of(row["name"]))
    left.set_xscale("log", base=2)
    left.set_xticks(lengths, [str(length) for length in lengths])
    left.set_xlabel("tokens")
    left.set_ylabel("held-out perplexity")
    for name in PLOTTED_METHODS:
        right.plot(report["closed_forms"][name]["rescale_factors"], **style_of(name))
    right.plot(report["factors"]["rescale_factors"], **style_of("found"))
    right.set_xlabel("rotary pair i")
    right.set_ylabel("rescale factor")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "factor-search"}):
        figure.savefig(destination, metadata={"Date": None}, facecolor="white")


def style_of(name: str) -> dict[str, object]:
    found = name == "found"
    colour = FOUND_COLOUR if found else PLOTTED_METHODS[name]
    return {"color": colour, "linewidth": 2.5 if found else 1.3, "label": name}


if __name__ == "__main__":
    main()
