"""Whether winners hold a limit on short texts, and what it costs: ``python -m bench.short_window``.

The shipped model is extended from 256 to 1,024 tokens, each time with another seed: other documents, another search.
Each search runs with and without the limit. The loss in windows of 256 tokens of the held-out documents, minus that of
the untouched model, must be within the limit in nine of ten runs; the price is the paired difference at 1,024 tokens.
Documents are as many as a job has by default. What the search without a limit costs is that of first windows.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from factor_search.job import run_job
from factor_search.measure.statistics import paired_difference
from factor_search.model.allocator import keep_freed_memory
from factor_search.report.document import build_report
from factor_search.search.selection import JobResult
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

REQUIRED = 0.9
DOCUMENTS = 20
"""As many as a job uses by default, of the 34 that there are."""


def searched(seed: int, at_most: float | None, candidates: int) -> JobResult:
    """One search, with or without the limit."""
    document: dict[str, Any] = {
        "name": f"seed {seed}",
        "model": {"id": str(CHECKPOINT), "device": "cpu"},
        "data": {
            "files": _files(seed),
        },
        "target_length": 1024,
        "space": {"initial_tokens": [0]},
        "budget": candidates,
        "baselines": ["none", "yarn"],
        "seed": seed,
        "short_window": None if at_most is None else {"at_most": at_most},
    }
    with tempfile.TemporaryDirectory() as folder:
        return run_job(parse_spec(document), Path(folder, "out"))


def _files(seed: int) -> list[str]:
    """Another choice of documents for each seed."""
    files = [str(file) for file in held_out_files()]
    return [files[place] for place in np.random.default_rng(seed).permutation(len(files))[:DOCUMENTS]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-most", type=float, default=0.01)
    parser.add_argument("--candidates", type=int, default=80)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    rows, held = [], 0
    print(f"{'seed':>4}{'without':>10}{'with':>10}{'':>8}{'price at 1,024 tokens':>26}   nats per token")
    for seed in range(given.first_seed, given.first_seed + given.runs):
        free, guarded = (searched(seed, at_most, given.candidates) for at_most in (None, given.at_most))
        short, long = (build_report(result)["short_context"] for result in (guarded, free))
        one, other = guarded.held_out[guarded.winner], free.held_out[free.winner]
        price, error = paired_difference(one.losses, other.losses, one.tokens)
        cost = short["windows"]["difference"]
        held += short["holds"]
        holds = "holds" if short["holds"] else "BEYOND"
        print(
            f"{seed:>4}{long['difference']:>10.4f}{cost:>10.4f}{holds:>8}{price:>+16.4f} ± {error:.4f}",
            flush=True,
        )
        rows.append({"seed": seed, "without": long, "with": short, "price": price, "price_standard_error": error})
    print(f"{held} of {given.runs} hold the limit of {given.at_most:g} (required: {REQUIRED:.0%})")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))
    return 0 if held >= REQUIRED * given.runs else 1


if __name__ == "__main__":
    sys.exit(main())
