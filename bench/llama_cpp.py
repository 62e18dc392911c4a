"""Compares log-probabilities of llama.cpp on an exported GGUF file with those of transformers in float32.

    python -m bench.llama_cpp MODEL.gguf BOOK.txt --tokens 8448 --target-length 16384

The factors are YaRN's. Both compute angles in float32: llama.cpp as a running product from pair to pair that begins
with the position, transformers as position times frequency. Far into a text the rounding of angles is the limit. The
second line compares with transformers at frequencies that are such a running product. The third line shows that
the rest of transformers' float32 is not the limit: the same angles, with everything else in float64.

Where llama.cpp multiplies with quantised weights, it rounds activations to 8 bits, which changes log-probabilities far
more than any factor file could be wrong. So the weights of a quantised file are compared as F32, and ``--as-it-is``
shows how much the rounding changes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.export.verification.llama_cpp import LlamaCpp
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.methods import closed_form
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.text.tokens import CachedTokenizer

COUNT = 32
MEAN, NEARLY_ALL, LARGEST, UNSCALED = 5e-5, 3e-4, 2e-3, 0.5
"""In nats: mean, 99 % and largest difference that are allowed, and the least that the unscaled model must differ by."""
Scores = NDArray[np.float64]


@torch.inference_mode()
def transformers_scores(loaded: LoadedModel, ids: list[int], positions: list[int], factors: Factors | None) -> Scores:
    """Log-probabilities with factors injected; None leaves the model as it is."""
    rows = [factors] if factors else []
    with Injector(loaded.model, loaded.geometry) as injector, injector.using(rows):
        before = torch.tensor([p - 1 for p in positions])
        logits = loaded.model(torch.tensor([ids]), logits_to_keep=before, use_cache=False).logits[0]
    scores = torch.log_softmax(logits.double(), dim=-1)
    return np.array([scores[row, ids[p]].item() for row, p in enumerate(positions)])


def running_product(geometry: Geometry, factors: Factors) -> Factors:
    """The factors that give transformers the frequencies that llama.cpp computes (``ggml_rope_cache_init``)."""
    step = np.float32(np.power(np.float32(geometry.rope_theta), np.float32(-2.0 / geometry.rotary_dim)))
    theta, found = np.float32(1.0), []
    for i, factor in enumerate(factors.rescale_factors):
        exact = geometry.rope_theta ** (-2 * i / geometry.rotary_dim)
        found.append(exact / float(theta / np.float32(factor)))
        theta = np.float32(theta * step)
    return Factors.of(found, 0, factors.attention_factor)


def main() -> int:
    """Print the differences; the status is 1 if one is too large, or the unscaled model too near."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("book", type=Path)
    parser.add_argument("--tokens", type=int, default=8448)
    parser.add_argument("--target-length", type=int, default=16384)
    parser.add_argument("--as-it-is", action="store_true", help="do not write the weights as F32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llama_cpp = LlamaCpp(as_f32=not arguments.as_it_is)
        spec = ModelSpec(id=str(arguments.model), dtype="float32", device="cpu")
        loaded = load_model(spec)
        ids = CachedTokenizer(loaded.tokenizer)(arguments.book.read_text())[: arguments.tokens].tolist()
        positions = list(range(len(ids) - COUNT, len(ids)))
        factors = closed_form("yarn", loaded.geometry, arguments.target_length)
        of = FactorsModel.of(spec.id, None, loaded.geometry)
        found = factors_file(factors, of, arguments.target_length)
        (exported,) = export("gguf", Source(found, spec), Path(folder)).files
        start = time.monotonic()
        engine = np.array(llama_cpp.log_probabilities(exported, ids, positions))
        seconds = time.monotonic() - start
        theirs = running_product(loaded.geometry, factors)
        ours = transformers_scores(loaded, ids, positions, factors)
        pairs = {
            "transformers": (engine, ours),
            "at the frequencies of llama.cpp": (engine, transformers_scores(loaded, ids, positions, theirs)),
        }
        unscaled = np.abs(engine - transformers_scores(loaded, ids, positions, None)).max()
        loaded.model.double()
        pairs["transformers, float32 and 64"] = (ours, transformers_scores(loaded, ids, positions, factors))
    print(f"llama.cpp {llama_cpp.version()}, the last {COUNT} of {len(ids)} tokens, {seconds:.0f} s on one thread")
    for name, (one, other) in pairs.items():
        off = np.abs(one - other)
        print(f"{name:32} mean {off.mean():.1e}, 99 % {np.quantile(off, 0.99):.1e}, largest {off.max():.1e}")
    print(f"{'unscaled':32} largest {unscaled:.2f}")
    off = np.abs(engine - ours)
    within = off.mean() <= MEAN and np.quantile(off, 0.99) <= NEARLY_ALL and off.max() <= LARGEST
    return int(not within or unscaled <= UNSCALED)


if __name__ == "__main__":
    raise SystemExit(main())
