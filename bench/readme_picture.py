"""The README's picture from a demo's report: ``python -m bench.readme_picture REPORT.json PICTURE.svg``."""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from factor_search.report.plots import draw_factors, draw_lengths


def main() -> None:
    source, destination = map(Path, sys.argv[1:3])
    report = json.loads(source.read_text())
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_lengths(left, report)
    left.set_ylabel("held-out perplexity")
    draw_factors(right, report)
    with matplotlib.rc_context({"svg.hashsalt": "factor-search"}):
        figure.savefig(destination, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
