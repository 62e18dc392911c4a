"""What shape the best factors have on models of other sizes and after fine-tuning: ``python -m bench.shape``.

Each model is searched with the default budget, then trained with what was found at the target length, and searched
again. The shape is described by the constants of ``rotation-step`` that come nearest to the factors: the least mean
square of the differences of log lambda. Initial tokens are not searched, since a configuration cannot express them.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bench.efficiency_runs import Measured, Workplace, measured, search_of, workplace
from bench.fit_closed_form import FORMS, Constants
from bench.models import BenchModel, bench_model, hash_of
from bench.recipes import SHIPPED
from bench.search_efficiency import in_processes
from bench.texts import read_text
from factor_search.factors import Factors
from factor_search.files.cache import cache_folder
from factor_search.finetune.run import finetune
from factor_search.finetune.spec import FinetuneSpec
from factor_search.measure.statistics import paired_difference
from factor_search.methods import OWN, closed_forms
from factor_search.methods.ramps import STEP, rotation_step
from factor_search.model.geometry import Geometry
from factor_search.model.loading import load_model
from factor_search.search.selection import finalists
from factor_search.spec import ModelSpec, parse_spec
from factor_search.testbed.corpus import training_documents

MODELS = ("docs-16x-small", "docs-16x", "shipped-4x", "shipped-8x")
ROUNDS = (1.0, 0.3, 0.1, 0.03)
"""Shares of the box of constants from which each round of :func:`shape_of` draws around the best."""
DRAWN = 1024


@dataclass(frozen=True)
class Searched:
    """What a search reports, and how it compares on held-out documents."""

    title: str
    scale: float
    parameters: int
    factors: Factors
    shape: Constants
    distance: float
    """Root mean square of what the shape leaves of log lambda."""
    found: Measured
    published: Measured
    """The published closed form that is best on validation documents."""
    form: Measured
    """``rotation-step``."""
    carried: Measured | None
    """After fine-tuning, the factors that were found before it."""
    tokens: tuple[int, ...]


def shape_of(factors: Factors, geometry: Geometry, target_length: int) -> tuple[Constants, float]:
    """The constants of ``rotation-step`` that come nearest to factors, and the root mean square of what they leave."""
    wanted, box = np.log(factors.rescale_factors), FORMS["step"][1]
    best, least = box.mean(axis=1), np.inf
    for number, share in enumerate(ROUNDS):
        engine = torch.quasirandom.SobolEngine(len(box), scramble=True, seed=number)  # type: ignore[no-untyped-call]
        half = share * (box[:, 1] - box[:, 0]) / 2
        drawn = best + half * (2 * engine.draw(DRAWN, dtype=torch.float64).numpy() - 1)
        for constants in np.clip(drawn, *box.T):
            nearby = np.log(rotation_step(geometry, target_length, *map(float, constants)).rescale_factors)
            if (distance := float(np.mean((nearby - wanted) ** 2))) < least:
                best, least = constants, distance
    return best, least**0.5


def searched(
    title: str, model: BenchModel, documents: tuple[int, int, int], seed: int, before: Factors | None = None
) -> Searched:
    """Search without initial tokens, with the default budget."""
    with workplace(model, *documents) as place:
        found = found_by_search(place, seed)
        forms = closed_forms(place.geometry, place.target_length)
        form = forms[STEP]
        others = (one for name, one in forms.items() if name not in OWN)
        published = min(others, key=lambda one: place.evaluate(one, place.samples.validation).loss)
        shape, distance = shape_of(found, place.geometry, place.target_length)
        return Searched(
            title=title,
            scale=place.target_length / place.geometry.original_length,
            parameters=load_model(ModelSpec(id=str(model.folder), device="cpu")).model.num_parameters(),
            factors=found,
            shape=shape,
            distance=distance,
            found=measured(found, place),
            published=measured(published, place),
            form=measured(form, place),
            carried=None if before is None else measured(before, place),
            tokens=tuple(len(sample.tokens) - 1 for sample in place.samples.held_out.samples),
        )


def found_by_search(place: Workplace, seed: int) -> Factors:
    """The finalist that is best on validation documents."""
    document = {"model": "bench", "data": ["bench"], "target_length": place.target_length}
    spec = parse_spec(document | {"name": "shape", "space": {"initial_tokens": [0]}, "seed": seed})
    state, _ = search_of(spec, place)
    return min(finalists(state), key=lambda one: place.evaluate(one, place.samples.validation).loss)


def tuned(model: BenchModel, factors: Factors, steps: int) -> BenchModel:
    """The model, trained at the target length with the factors, but with the configuration that it had before."""
    recipe = model.recipe
    texts = training_documents() if recipe.architecture == SHIPPED else read_text(recipe.text)[0]
    documents = [np.frombuffer(text, np.uint8).astype(np.int64) for text in texts if len(text) >= recipe.target]
    spec = FinetuneSpec(
        data_form="full", batch_size=max(8192 // recipe.target, 1), steps=steps, learning_rate=1e-3, warmup_steps=10
    )
    folder = cache_folder("bench") / f"tuned-{hash_of(recipe):08x}-{steps}-{factors.sha256[:12]}"
    loaded = load_model(ModelSpec(id=str(model.folder), device="cpu"))
    result = finetune(loaded, documents, factors, recipe.target, spec, folder)
    untouched = folder / f"untouched-{folder.name}"  # the name of its ledger, too
    if not untouched.exists():
        building = folder / "building"
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(result.model, building)
        for name in ("config.json", "documents.npy"):
            if (model.folder / name).exists():
                shutil.copy(model.folder / name, building / name)
        building.rename(untouched)
    return BenchModel(recipe, untouched)


def before_and_after(name: str, documents: tuple[int, int, int], seed: int, steps: int) -> list[Searched]:
    """Search a model, train it, and search it again."""
    model = bench_model(name)
    rows = [searched(name, model, documents, seed)]
    if steps:
        factors = rows[0].factors
        rows.append(searched(f"{name}, tuned", tuned(model, factors, steps), documents, seed, factors))
    return rows


def table(rows: Sequence[Searched]) -> str:
    """A row a search: sizes, the shape, and nats per token on held-out documents behind what was found."""
    titles = ("step", "jump", "level", "start", "left", "attention")
    lines = [f"{'':24}{'million':>8}{'s':>4}" + "".join(f"{title:>10}" for title in titles)]
    for row in rows:
        numbers = (*row.shape.tolist(), row.distance, row.factors.attention_factor)
        shape = "".join(f"{number:>10.3f}" for number in numbers)
        lines.append(f"{row.title:24}{row.parameters / 1e6:>8.2f}{row.scale:>4g}{shape}")
    lines.append(
        f"\n{'nats behind what was found':24}{'perplexity':>14}{'best published':>20}{STEP:>20}{'before tuning':>20}"
    )
    for row in rows:
        behind = "".join(f"{_behind(one, row):>20}" for one in (row.published, row.form, row.carried))
        lines.append(f"{row.title:26}{row.found.perplexity:>14.4f}{behind}")
    return "\n".join(lines)


def _behind(one: Measured | None, row: Searched) -> str:
    if one is None:
        return ""
    difference, error = paired_difference(one.held_out_losses, row.found.held_out_losses, row.tokens)
    return f"{difference:+.4f} ± {error:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=100, help="of 8,192 tokens at the target length; 0 tunes nothing")
    parser.add_argument("--documents", nargs=3, type=int, default=[8, 4, 16], help="of search, validation and held-out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    given = parser.parse_args()
    work = partial(before_and_after, documents=tuple(given.documents), seed=given.seed, steps=given.steps)
    found: list[list[Searched]] = in_processes(given.models, given.jobs, work)
    print("\n" + table([row for rows in found for row in rows]))


if __name__ == "__main__":
    main()
