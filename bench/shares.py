"""How many full evaluations a search spends for its candidates: ``python -m bench.shares``.

The shipped model is searched at 512 tokens on modules of the standard library. A full evaluation is one candidate on
all search documents; races and the first stages of ``auto`` use fewer. The table of
:mod:`factor_search.search.shares` is what this prints.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from factor_search.job import read_samples
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.model.loading import load_model
from factor_search.search.loop import SearchState, search
from factor_search.search.problem import SearchProblem
from factor_search.spec import JobSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

BUDGETS = (10, 25, 50, 100, 200)
RUNS: tuple[tuple[str, bool | None, int, int], ...] = (
    *(("auto", None, documents, 200) for documents in (8, 4, 2)),
    *((kind, True, 8, 100) for kind in ("evolution", "cma", "tpe", "nsga2", "random")),
)
"""Strategy, racing, search documents and candidates."""


def shares(spec: JobSpec) -> dict[int, float]:
    """Full evaluations for each candidate, by the number of candidates so far."""
    loaded = load_model(spec.model)
    problem, samples = SearchProblem.of(spec, loaded.geometry), read_samples(spec, loaded)
    full = len(samples.search.samples) * (spec.target_length - 1)
    found: dict[int, float] = {}

    def note(state: SearchState) -> None:
        count = len(state.candidates)
        if count in BUDGETS:
            found[count] = state.tokens / full / count  # the last of the evaluations of so many

    with LocalEvaluator(loaded, spec.target_length) as evaluator:
        search(
            problem.strategy(len(samples.search.samples)),
            evaluator,
            samples.search,
            spec.budget,
            note,
            error_rate=spec.racing_error_rate,
            original_length=loaded.geometry.original_length,
        )
    return found


def specification(strategy: str, racing: bool | None, documents: int, candidates: int, seed: int) -> JobSpec:
    data = {
        "files": [str(file) for file in held_out_files()],
        "search_documents": documents,
        "validation_documents": 1,
        "held_out_documents": 1,
        "cut_long_documents": True,
    }
    document: dict[str, Any] = {
        "model": str(CHECKPOINT),
        "data": data,
        "target_length": 512,
        "space": {"initial_tokens": [0]},
        "strategy": strategy,
        "racing": racing,
        "budget": candidates,
        "seed": seed,
    }
    return parse_spec(document)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="these strategies")
    arguments = parser.parse_args(given)
    print(f"{'strategy':12}{'racing':>8}{'documents':>10}" + "".join(f"{count:>8}" for count in BUDGETS), flush=True)
    for strategy, racing, documents, candidates in RUNS:
        if arguments.only and strategy not in arguments.only:
            continue
        for seed in range(arguments.seeds):
            found = shares(specification(strategy, racing, documents, candidates, seed))
            cells = "".join(f"{found[count]:>8.2f}" if count in found else f"{'':>8}" for count in BUDGETS)
            print(f"{strategy:12}{racing!s:>8}{documents:>10}{cells}", flush=True)


if __name__ == "__main__":
    main()
