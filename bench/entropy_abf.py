"""Entropy-ABF with and without its factor on queries (2401.07004): ``python -m bench.entropy_abf [NAME ...]``.

A raised base is a RoPE factor, which engines can load, and ``entropy-abf`` among the closed forms. The other half of
the method multiplies the query at position i, counted from 0, by max(1, ln(i + 1) / ln L) from the third layer on,
where L is the original length (sec. 3.2): no engine loads that, so it is compared with here, and is no closed form.
"""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.efficiency_runs import workplace
from bench.models import bench_model
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.statistics import paired_difference
from factor_search.methods import closed_form
from factor_search.model.loading import load_model
from factor_search.spec import ModelSpec

FIRST_LAYER = 2
"""The third; the first two attend differently (sec. 3.2)."""
IMPLEMENTATION = "sdpa"


def query_factors(tokens: int, original_length: int) -> Tensor:
    """What multiplies the query of each position: float64 of shape (tokens,)."""
    positions = torch.arange(1, tokens + 1, dtype=torch.float64)
    return (positions.log() / math.log(original_length)).clamp_min_(1.0)


@contextmanager
def scaled_queries(original_length: int) -> Iterator[None]:
    """Let models compute attention with scaled queries, on whole texts from their first token on."""
    own = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]

    def attend(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module.layer_idx >= FIRST_LAYER:
            factors = query_factors(query.shape[2], original_length).to(query)
            query = query * factors[:, None]
        return own(module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION] = own


def compare(name: str) -> None:
    """Print held-out losses of one model of :mod:`bench.models`, and what the factor on queries changes."""
    model = bench_model(name)
    with workplace(name, 8, 4, 16) as place:
        samples, geometry, target = place.samples.held_out, place.geometry, place.target_length
    loaded = load_model(ModelSpec(id=str(model.folder), device="cpu", attention=IMPLEMENTATION))
    with LocalEvaluator(loaded, target) as evaluator:
        found = {form: evaluator.evaluate(closed_form(form, geometry, target), samples) for form in ("none", "yarn")}
        raised = closed_form("entropy-abf", geometry, target)
        found["entropy-abf"] = plain = evaluator.evaluate(raised, samples)
        with scaled_queries(geometry.original_length):
            found["entropy-abf, queries too"] = both = evaluator.evaluate(raised, samples)
            found["none, queries too"] = evaluator.evaluate(closed_form("none", geometry, target), samples)
    mean, error = paired_difference(both.losses, plain.losses, plain.tokens)
    losses = ", ".join(f"{form} {one.loss:.4f}" for form, one in found.items())
    print(f"{name}: {losses} nats; the factor on queries changes {mean:+.4f} ± {error:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME", default=["docs-64", "docs-16x"])
    for name in parser.parse_args().models:
        compare(name)


if __name__ == "__main__":
    main()
