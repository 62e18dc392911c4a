"""How much of what a search gains YaRN's own numbers keep: ``python -m bench.yarn_numbers``.

On each model ``auto`` searches lists of factors with its default budget. Then the numbers of YaRN that come nearest by
loss are searched from them, on the same documents, as ``factor-search approximate`` does. Both are chosen on validation
documents and measured on held-out ones, beside YaRN with its usual numbers. At least half of the gain must be kept on
two of three models.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench.efficiency_runs import Measured, Plan, Workplace, finalist_of, measured, run_search, search_of, workplace
from bench.fresh import first_looked_at, names, recipe_of
from bench.search_efficiency import in_processes
from factor_search.factors import Factors
from factor_search.measure.statistics import paired_difference
from factor_search.methods import closed_form
from factor_search.search.problem import SearchProblem
from factor_search.spec import AutoSpec, BudgetSpec, parse_spec

CANDIDATES = 120
"""As ``factor-search approximate`` has by default."""
KEPT, OF_MODELS = 0.5, 2 / 3


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is measured on the held-out documents of a model."""

    model: str
    scale: float
    yarn: Measured
    approximated: Measured
    found: Measured
    tokens: tuple[int, ...]
    numbers: dict[str, float]

    @property
    def gain(self) -> tuple[float, float]:
        """How much better than YaRN the found factors are, nats per token, with its standard error."""
        return paired_difference(self.yarn.held_out_losses, self.found.held_out_losses, self.tokens)

    @property
    def price(self) -> tuple[float, float]:
        """How much worse than the found factors the numbers are, nats per token, with its standard error."""
        return paired_difference(self.approximated.held_out_losses, self.found.held_out_losses, self.tokens)

    @property
    def share(self) -> float:
        """Share of the gain that the numbers keep."""
        return 1 - self.price[0] / self.gain[0]


def kept(name: str, documents: tuple[int, int, int]) -> Kept:
    """Search lists and numbers on a model."""
    with workplace(name, *documents) as place:
        state, _ = run_search(Plan(name="auto", strategy=AutoSpec(), seed=0, budget=BudgetSpec()), place)
        found = finalist_of(state, place)
        numbers, problem = approximated(found, place)
        form = problem.space.form
        assert form is not None
        return Kept(
            model=name,
            scale=place.target_length / place.geometry.original_length,
            yarn=measured(closed_form("yarn", place.geometry, place.target_length), place),
            approximated=measured(numbers, place),
            found=measured(found, place),
            tokens=tuple(len(sample.tokens) - 1 for sample in place.samples.held_out.samples),
            numbers=form.as_json(numbers) or {},
        )


def approximated(found: Factors, place: Workplace) -> tuple[Factors, SearchProblem]:
    """Search YaRN's numbers from found factors."""
    known = found.as_json() | {
        "source": "search",
        "scale": place.target_length / place.geometry.original_length,
        "rotary_dim": place.geometry.rotary_dim,
        "rope_theta": place.geometry.rope_theta,
        "compare_as": "given factors",
    }
    document = {"name": "numbers", "model": "bench", "data": ["bench"], "target_length": place.target_length}
    document |= {"space": {"form": "yarn"}, "budget": CANDIDATES, "warm_start": {"factors": [known]}}
    spec = parse_spec(document)
    state, problem = search_of(spec, place)
    return finalist_of(state, place, problem.may_win), problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="the judges of a seed, at 16, 32 and 64 times")
    parser.add_argument("--documents", nargs=3, type=int, default=[8, 4, 24], help="of search, validation and held-out")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    models = given.models + ([] if given.fresh is None else names(given.fresh, (16, 32, 64)))
    if not models:
        parser.error("name models, or give --fresh with a seed")
    for name in models:
        if recipe_of(name).role == "judge":
            print(f"{name}: {first_looked_at(name)}")
    found: list[Kept] = in_processes(models, given.jobs, partial(kept, documents=tuple(given.documents)))
    print(f"\n{'model':16}{'s':>4}{'YaRN':>10}{'numbers':>10}{'found':>10}{'price, nats':>20}{'gain kept':>12}")
    for one in found:
        perplexities = "".join(f"{part.perplexity:>10.4f}" for part in (one.yarn, one.approximated, one.found))
        price, error = one.price
        print(f"{one.model:16}{one.scale:>4g}{perplexities}{price:>+11.4f} ± {error:.4f}{one.share:>12.0%}")
        print(" " * 20 + ", ".join(f"{key} {value}" for key, value in one.numbers.items() if key != "kind"))
    held = sum(one.share >= KEPT for one in found)
    print(f"{held} of {len(found)} keep {KEPT:.0%} of the gain or more (required: {OF_MODELS:.0%} of them)")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0 if held >= OF_MODELS * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
