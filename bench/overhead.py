"""The search's own share of wall time: ``python -m bench.overhead``.

The benchmark runs the demo's search and times the model's forward passes. Everything else between the first candidate
and the last (strategy, hashing, records on disk, bookkeeping) is overhead.
"""

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from api.cli.demo import specification
from factor_search.job import run_job
from factor_search.model.losses import token_losses
from factor_search.search.loop import SearchState
from factor_search.search.selection import JobWatcher
from factor_search.spec import parse_spec

CANDIDATES = 60


def main() -> None:
    in_model = 0.0
    marks: list[tuple[float, float]] = []

    def timed(*arguments: Any, **settings: Any) -> Any:
        nonlocal in_model
        start = time.perf_counter()
        try:
            return token_losses(*arguments, **settings)
        finally:
            in_model += time.perf_counter() - start

    def mark(state: SearchState) -> None:
        marks.append((time.perf_counter(), in_model))

    with (
        mock.patch("factor_search.measure.evaluation.token_losses", timed),
        tempfile.TemporaryDirectory() as folder,
    ):
        run_job(parse_spec(specification(CANDIDATES)), Path(folder), JobWatcher(candidate=mark))
    wall = marks[-1][0] - marks[0][0]
    model = marks[-1][1] - marks[0][1]
    print(
        f"{len(marks) - 1} candidates: {wall:.2f} s of wall time, {model:.2f} s in the model, "
        f"overhead {100 * (wall - model) / wall:.2f} %"
    )


if __name__ == "__main__":
    main()
