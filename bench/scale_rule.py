"""Whether factors can be carried to another scale without a search there: ``python -m bench.scale_rule``.

The shipped model is searched at 4 and at 8 times its context, each time with the default budget. The factors of each
scale are carried to the other by two rules, and measured there on held-out documents beside what was searched there and
the best published closed form:

* as warm starts of the same model are, lambda' = 1 + (lambda - 1) (s' - 1) / (s - 1);
* as those of another model are, with the heights log lambda / log s kept.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch

from bench.efficiency_runs import Plan, Workplace, finalist_of, measured, run_search, workplace
from factor_search.factors import Factors
from factor_search.measure.statistics import paired_difference
from factor_search.methods import OWN, closed_forms
from factor_search.methods.ramps import STEP
from factor_search.model.allocator import keep_freed_memory
from factor_search.search.warm_start import rescaled
from factor_search.spec import AutoSpec, BudgetSpec

MODELS = ("shipped-4x", "shipped-8x")


@dataclass(frozen=True)
class Searched:
    """What a search with the default budget reports."""

    factors: Factors
    scale: float


def searched(name: str, documents: tuple[int, int, int]) -> Searched:
    """Search at the scale of a model's name."""
    with workplace(name, *documents) as place:
        state, _ = run_search(Plan(name="auto", strategy=AutoSpec(), seed=0, budget=BudgetSpec()), place)
        return Searched(finalist_of(state, place), place.target_length / place.geometry.original_length)


def with_heights(factors: Factors, scale: float, to_scale: float) -> Factors:
    """Factors whose heights log lambda / log s stay where they were."""
    logs = np.log(factors.rescale_factors) * np.log(to_scale) / np.log(scale)
    attention = rescaled(factors, scale, to_scale).attention_factor
    return Factors.of(np.exp(logs).tolist(), factors.initial_tokens, attention)


def candidates(here: Searched, there: Searched, place: Workplace) -> dict[str, Factors]:
    """What is compared at one scale, by name; first what was searched there."""
    forms = closed_forms(place.geometry, place.target_length)
    published = [name for name in forms if name not in OWN]
    best = min(published, key=lambda name: place.evaluate(forms[name], place.samples.validation).loss)
    return {
        "searched there": here.factors,
        f"of {there.scale:g} times, lambda - 1 in proportion": rescaled(there.factors, there.scale, here.scale),
        f"of {there.scale:g} times, heights kept": with_heights(there.factors, there.scale, here.scale),
        STEP: forms[STEP],
        best: forms[best],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs=3, type=int, default=[8, 4, 22], help="of search, validation and held-out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    documents = tuple(given.documents)
    found = [searched(name, documents) for name in MODELS]
    for name, here, there in zip(MODELS, found, found[::-1], strict=True):
        with workplace(name, *documents) as place:
            rows = {title: measured(one, place) for title, one in candidates(here, there, place).items()}
            tokens = [len(sample.tokens) - 1 for sample in place.samples.held_out.samples]
        print(f"\nat {here.scale:g} times: held-out perplexity, and nats behind what was searched there")
        first = next(iter(rows.values()))
        for title, row in rows.items():
            behind, error = paired_difference(row.held_out_losses, first.held_out_losses, tokens)
            print(f"{title:40}{row.perplexity:>9.4f}{behind:>+10.4f}" + (f" ± {error:.4f}" if behind else ""))


if __name__ == "__main__":
    main()
