"""Tokens per second of a candidate's evaluation against plain ``model(input_ids)``: ``python -m bench.throughput``.

Both run alternately on the same tokens in one process; what is printed is the median of the paired ratios. The plain
call computes logits and nothing else; the evaluation computes logits, loss and everything that is recorded.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factor_search.evaluation import LocalEvaluator
from factor_search.factors import Factors
from factor_search.geometry import read_geometry
from factor_search.models import LoadedModel, load_model
from factor_search.samples import Sample, SampleSet
from factor_search.spec import ModelSpec
from factor_search.testbed import CHECKPOINT

ROUNDS = 15


def large_vocabulary() -> LoadedModel:
    """A random Llama whose output layer weighs as much as in real models."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    spec = ModelSpec(id="random")
    return LoadedModel(LlamaForCausalLM(config).eval(), None, read_geometry(config), "random", spec)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name: str, loaded: LoadedModel, length: int) -> None:
    vocabulary = loaded.model.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocabulary, length)
    samples = SampleSet("search", (Sample("random", tokens, "0"),))
    ids = torch.from_numpy(tokens)[None]
    factors = Factors.of([1.5] * loaded.geometry.pairs, attention_factor=1.1)
    ours, plain = [], []
    with LocalEvaluator(loaded, length) as evaluator, torch.inference_mode():
        for round_number in range(ROUNDS + 2):
            pair = (
                seconds_of(lambda: evaluator.evaluate(factors, samples)),
                seconds_of(lambda: loaded.model(input_ids=ids)),
            )
            if round_number >= 2:
                ours.append(pair[0])
                plain.append(pair[1])
    ratios = sorted(b / a for a, b in zip(ours, plain, strict=True))
    print(
        f"{name}, {length} tokens: {length / statistics.median(ours):,.0f} tokens/s evaluated, "
        f"{length / statistics.median(plain):,.0f} plain; ratio {statistics.median(ratios):.3f} "
        f"(quartiles {ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f})"
    )


def main() -> None:
    shipped = load_model(ModelSpec(id=str(CHECKPOINT), device="cpu"))
    measure("shipped model", shipped, 2048)
    measure("shipped model", shipped, 8192)
    measure("vocabulary 32,000", large_vocabulary(), 2048)


if __name__ == "__main__":
    main()
