"""Closed forms on SmolLM2, and raised bases with other attention factors: ``python -m bench.pretrained_forms``.

A base raised to base * s^k is drawn for each exponent k, with each attention factor, and evaluated on documents of
:mod:`bench.real_model`, beside published forms. Evaluations are kept in the folder of that benchmark, which shares its
documents, so a table that was printed once is printed again at once.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.real_model import Setting
from factor_search.factors import Factors
from factor_search.job import read_samples
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.statistics import paired_difference
from factor_search.methods import closed_form
from factor_search.methods.rebased import new_base
from factor_search.model.geometry import Geometry
from factor_search.model.loading import load_model
from factor_search.spec import parse_spec
from factor_search.text.samples import SampleSet


@contextmanager
def opened(setting: Setting, part: str) -> Iterator[tuple[RecordedEvaluator, SampleSet, Geometry]]:
    """The model with the documents of a part: search, validation or held_out."""
    spec = parse_spec(setting.spec)
    loaded = load_model(spec.model)
    samples: SampleSet = getattr(read_samples(spec, loaded), part)
    Path("search").mkdir(exist_ok=True)
    ledger_file = Path("search", "evaluations.jsonl")
    with Ledger(ledger_file) as ledger, LocalEvaluator(loaded, setting.target) as local:
        yield RecordedEvaluator(local, ledger), samples, loaded.geometry


def raised(geometry: Geometry, target: int, exponent: float, attention_factor: float) -> Factors:
    """The base times s^exponent, and an attention factor."""
    scale = target / geometry.original_length
    return replace(new_base(geometry, geometry.rope_theta * scale**exponent), attention_factor=attention_factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/smollm2"))
    parser.add_argument("--target", type=int, default=16_384)
    parser.add_argument("--documents", type=int, nargs=3, default=[2, 2, 8], metavar="N", help="as in bench.real_model")
    parser.add_argument("--part", choices=["search", "validation", "held_out"], default="search")
    parser.add_argument("--forms", nargs="*", default=["yarn", "entropy-abf"], metavar="NAME")
    parser.add_argument("--exponents", type=float, nargs="*", default=[], metavar="K")
    parser.add_argument("--attention-factors", type=float, nargs="*", default=[], metavar="A")
    given = parser.parse_args()
    setting = Setting(given.out, given.target, 24, tuple(given.documents), ("yarn",))
    setting.enter()
    with opened(setting, given.part) as (evaluator, samples, geometry):
        candidates = {name: closed_form(name, geometry, given.target) for name in given.forms}
        for exponent in given.exponents:
            for attention_factor in given.attention_factors:
                title = f"base x s^{exponent:g}, attention factor {attention_factor:g}"
                candidates[title] = raised(geometry, given.target, exponent, attention_factor)
        found: dict[str, Evaluation] = {}
        for name, factors in candidates.items():
            (found[name],) = evaluator.evaluate_all([factors], samples)
            print(f"{found[name].loss:.4f}  {name}", flush=True)
    best = min(found, key=lambda name: found[name].loss)
    print(f"\nbest on {len(samples.samples)} documents ({given.part}): {best}")
    for name, one in found.items():
        if name != best and len(one.losses) > 1:
            mean, error = paired_difference(one.losses, found[best].losses, one.tokens)
            print(f"{mean:+.4f} ± {error:.4f} nats  {name}")


if __name__ == "__main__":
    main()
