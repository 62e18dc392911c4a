"""Fits the constants of a closed form on models that strategies were designed on: ``python -m bench.fit_closed_form``.

The form is :func:`factor_search.methods.ramps.rotation_step`, or with ``--form yarn`` that of
:func:`factor_search.methods.ramps.yarn_narrow`. Every model evaluates it with the same constants, drawn evenly from a
box, and with more of them around the best. Printed are the constants that are best on all models: with the least mean
of the share of the way that is left, from the best published closed form to the model's own best constants. Judges are
not looked at.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.efficiency_runs import workplace
from bench.recipes import RECIPES
from bench.search_efficiency import in_processes
from factor_search.factors import Factors
from factor_search.methods import OWN, closed_forms, longrope_attention_factor, yarn_of_numbers
from factor_search.methods.ramps import rotation_step
from factor_search.model.geometry import Geometry

Constants = NDArray[np.float64]
Form = Callable[[Geometry, int, Constants], Factors]


def _yarn(geometry: Geometry, target_length: int, constants: Constants) -> Factors:
    """YaRN with other ends of its ramp, a power of s as factor, and LongRoPE's attention factor."""
    scale = target_length / geometry.original_length
    fast, slow, exponent = map(float, constants)
    return yarn_of_numbers(
        geometry,
        factor=scale**exponent,
        beta_fast=2.0**fast,
        beta_slow=2.0**slow,
        attention_factor=longrope_attention_factor(scale, geometry.original_length),
        rope_theta=geometry.rope_theta,
    )


FORMS: dict[str, tuple[Form, Constants, tuple[str, ...]]] = {
    "step": (
        lambda geometry, target, constants: rotation_step(geometry, target, *map(float, constants)),
        np.array([[-1.2, 0.4], [0.3, 2.2], [0.6, 1.3], [0.8, 5.0]]),
        ("step", "jump", "level", "start"),
    ),
    "yarn": (
        _yarn,
        np.array([[1.5, 4.5], [-1.2, 0.4], [0.8, 1.05]]),
        ("fast", "slow", "exponent"),
    ),
}
"""Of each form, the box of its constants and their names."""
WORST = 3.0
"""A share that is left counts so much at most, so that no single model decides."""


@dataclass(frozen=True)
class Fitted:
    """What a model gives with each choice of constants."""

    scale: float
    form: str
    """The best published closed form on these documents."""
    form_loss: float
    losses: list[float]

    @property
    def left(self) -> Constants:
        """Of each choice, the share of the way that is left: 0 is the model's own best one, 1 the closed form.

        At most :data:`WORST`, also where no choice is better than the closed form.
        """
        losses = np.array(self.losses)
        return np.asarray(np.minimum((losses - losses.min()) / max(self.form_loss - losses.min(), 1e-9), WORST))


def drawn(box: Constants, count: int, seed: int = 0, centre: Constants | None = None) -> list[Constants]:
    """Constants drawn evenly (Sobol), always the same: from the box, or from one of a third of its sides."""
    engine = torch.quasirandom.SobolEngine(len(box), scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    shares = engine.draw(count, dtype=torch.float64).numpy()
    low, high = box.T
    if centre is not None:
        half = (high - low) / 6
        low, high = np.maximum(centre - half, low), np.minimum(centre + half, high)
    return list(low + (high - low) * shares)


def measured(name: str, kind: str, constants: list[Constants], documents: int) -> Fitted:
    """Losses of the form with each choice of constants, and of the best published form, on documents of a model."""
    with workplace(name, documents, 1, 1) as place:
        geometry, target = place.geometry, place.target_length
        losses = {
            form: place.evaluate(factors, place.samples.search).loss
            for form, factors in closed_forms(geometry, target).items()
            if form not in OWN
        }
        best = min(losses, key=lambda form: losses[form])
        found = []
        for number, values in enumerate(constants, start=1):
            factors = FORMS[kind][0](geometry, target, values)
            found.append(place.evaluate(factors, place.samples.search).loss)
            if number % 64 == 0:
                print(f"{name}: {number} of {len(constants)}", flush=True)
    return Fitted(target / geometry.original_length, best, losses[best], found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    develop = [name for name, recipe in RECIPES.items() if recipe.role == "develop"]
    parser.add_argument("--models", nargs="+", default=develop)
    parser.add_argument("--form", choices=FORMS, default="step")
    parser.add_argument("--constants", type=int, default=128, help="choices of constants in each of the two rounds")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    parser.add_argument("--json", type=Path, help="write all losses into this file")
    given = parser.parse_args()
    _, box, titles = FORMS[given.form]
    constants = drawn(box, given.constants)
    for further in (True, False):
        work = partial(measured, kind=given.form, constants=constants, documents=given.documents)
        found: list[Fitted] = in_processes(given.models, given.jobs, work)
        left = np.array([one.left for one in found])
        if further:
            centre = constants[int(left.mean(axis=0).argmin())]
            constants = constants + drawn(box, given.constants, 1, centre)
    if given.json is not None:
        document = {name: vars(one) for name, one in zip(given.models, found, strict=True)}
        given.json.write_text(json.dumps({"constants": np.array(constants).tolist(), "models": document}, indent=1))
    print(f"\n{'':16}{'s':>5}" + "".join(f"{title:>10}" for title in titles) + f"{'left of the way':>18}")

    def show(title: str, place: int, share: float, scale: str = "") -> None:
        numbers = "".join(f"{value:>10.2f}" for value in constants[place])
        print(f"{title:16}{scale:>5}{numbers}{share:>17.1%}")

    for name, one in zip(given.models, found, strict=True):
        show(name, int(one.left.argmin()), 0.0, f"{one.scale:g}")
    mean = left.mean(axis=0)
    for place in np.argsort(mean)[:5]:
        show("all", int(place), float(mean[place]))
        print(" " * 20 + ", ".join(f"{name} {one[place]:.0%}" for name, one in zip(given.models, left, strict=True)))


if __name__ == "__main__":
    main()
