"""Looks for a closed form on the models that strategies were designed on: ``python -m bench.fit_closed_form``.

Every model evaluates the same profiles of four numbers (:mod:`factor_search.search.strategies.profile`), drawn evenly
from a box. It prints those that are best on all of them: with the least mean of the share of the way, from the best
published closed form to the model's own best profile, that is left. Judges are not looked at.
"""

import argparse
import json
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.efficiency_runs import workplace
from bench.recipes import RECIPES
from bench.search_efficiency import in_processes
from factor_search.methods import closed_forms, yarn_attention_factor
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.profile import Profile
from factor_search.spec import JobSpec, parse_spec

BOX = np.array([[-1.6, 1.2], [0.0, 0.7], [0.7, 1.3], [1.0, 7.0]])
"""Of step, height before it, level, and start."""
LARGE = 16
"""Scales from here on are large."""


def profiles(count: int) -> list[Profile]:
    """Evenly drawn (Sobol), always the same."""
    engine = torch.quasirandom.SobolEngine(len(BOX), scramble=True, seed=0)  # type: ignore[no-untyped-call]
    shares = engine.draw(count, dtype=torch.float64).numpy()
    low, high = BOX.T
    return [Profile(*map(float, row)) for row in low + (high - low) * shares]


def measured(name: str, count: int, documents: int) -> dict[str, float | list[float]]:
    """Losses of the profiles and of the best published closed form on some documents of a model."""
    with workplace(name, documents, 1, 1) as place:
        space = SearchSpace.of(_job(place.target_length), place.geometry)
        attention = yarn_attention_factor(space.scale)
        forms = closed_forms(place.geometry, place.target_length)
        best = min(place.evaluate(form, place.samples.search).loss for form in forms.values())
        losses = []
        for number, profile in enumerate(profiles(count), start=1):
            factors = profile.factors(space, 0, attention)
            losses.append(place.evaluate(factors, place.samples.search).loss)
            if number % 64 == 0:
                print(f"{name}: {number} of {count}", flush=True)
    return {"scale": space.scale, "form": best, "losses": losses}


def _job(target_length: int) -> JobSpec:
    return parse_spec({"name": "fit", "model": "bench", "data": ["bench"], "target_length": target_length})


def left(found: dict[str, float | list[float]]) -> np.ndarray:
    """Of each profile, the share of the way that is left: 0 is the model's own best profile, 1 the closed form."""
    losses, form = np.array(found["losses"]), found["form"]
    assert isinstance(form, float)
    return np.asarray((losses - losses.min()) / max(form - losses.min(), 1e-9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    develop = [name for name, recipe in RECIPES.items() if recipe.role == "develop"]
    parser.add_argument("--models", nargs="+", default=develop)
    parser.add_argument("--profiles", type=int, default=256)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    parser.add_argument("--json", type=Path, help="write all losses into this file")
    given = parser.parse_args()
    work = partial(measured, count=given.profiles, documents=given.documents)
    found = dict(zip(given.models, in_processes(given.models, given.jobs, work), strict=True))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))
    drawn, shares = profiles(given.profiles), {name: left(one) for name, one in found.items()}
    print(f"\n{'':14}{'s':>5}{'step':>8}{'before':>8}{'level':>8}{'start':>8}{'left of the way':>18}")

    def show(title: str, place: int, scale: float | str, share: float) -> None:
        numbers = "".join(f"{value:>8.2f}" for value in astuple(drawn[place]))
        print(f"{title:14}{scale:>5}{numbers}{share:>17.1%}")

    for name, share in shares.items():
        place = int(share.argmin())
        show(name, place, f"{found[name]['scale']:g}", float(share[place]))
    groups = {"all": list(shares)}
    groups["small scales"] = [name for name in shares if float(str(found[name]["scale"])) < LARGE]
    groups["large scales"] = [name for name in shares if name not in groups["small scales"]]
    for title, names in groups.items():
        if names:
            mean = np.mean([np.minimum(shares[name], 3.0) for name in names], axis=0)
            for place in np.argsort(mean)[:3]:
                show(title, int(place), "", float(mean[place]))
                print(" " * 20 + ", ".join(f"{name} {shares[name][place]:.0%}" for name in names))


if __name__ == "__main__":
    main()
