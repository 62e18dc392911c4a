"""Tokens per second of a candidate's evaluation and of a plain ``model(input_ids)``: ``python -m bench.throughput``.

Both run alternately on the same tokens, each in its own process: one set up as by ``factor-search``, which keeps freed
memory for reuse, one with the defaults. The benchmark prints the median of the paired ratios, and a second ratio with
the same memory settings for the plain call. The plain call computes logits only; the evaluation computes logits, loss
and everything that is recorded.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factor_search.factors import Factors
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.model.allocator import keep_freed_memory
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.testbed import CHECKPOINT
from factor_search.text.samples import Sample, SampleSet

ROUNDS = 15
CASES = {
    "shipped, 2048": (0, 2048),
    "shipped, 8192": (0, 8192),
    "32,000 words, 2048": (32_000, 2048),
    "128,256 words, 2048": (128_256, 2048),
}
"""Name -> (vocabulary of a random model, or 0 for the shipped one; tokens)."""


def large_vocabulary(words: int) -> LoadedModel:
    """A random Llama whose output layer has the same share of the work as in real models."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    spec = ModelSpec(id="random")
    return LoadedModel(LlamaForCausalLM(config).eval(), None, read_geometry(config), "random", spec)


def work_of(way: str, words: int, length: int) -> Callable[[], object]:
    """The call to be timed, in a process set up for it."""
    if way != "plain":
        keep_freed_memory()
    loaded = large_vocabulary(words) if words else load_model(ModelSpec(id=str(CHECKPOINT), device="cpu"))
    tokens = np.random.default_rng(0).integers(0, loaded.model.config.vocab_size, length)
    if way != "evaluate":
        ids = torch.from_numpy(tokens)[None]
        return lambda: loaded.model(input_ids=ids)
    samples = SampleSet("search", (Sample("random", tokens, "0"),))
    factors = Factors.of([1.5] * loaded.geometry.pairs, attention_factor=1.1)
    evaluator = LocalEvaluator(loaded, length).__enter__()
    return lambda: evaluator.evaluate(factors, samples)


def serve(way: str, words: int, length: int) -> None:
    """Time one call for each line on standard input."""
    work = work_of(way, words, length)
    with torch.inference_mode():
        for _ in sys.stdin:
            start = time.perf_counter()
            work()
            print(time.perf_counter() - start, flush=True)


def measure(name: str, words: int, length: int) -> None:
    ways = ("evaluate", "plain", "plain-reusing")
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.throughput", "--serve", way, str(words), str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for way in ways
    ]
    seconds: list[list[float]] = []
    for _ in range(ROUNDS + 2):
        seconds.append([])
        for server in servers:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write("\n")
            server.stdin.flush()
            seconds[-1].append(float(server.stdout.readline()))
    for server in servers:
        server.communicate()
    counted = seconds[2:]
    ours, plain, _ = (statistics.median(column) for column in zip(*counted, strict=True))
    ratios = [statistics.quantiles([row[n] / row[0] for row in counted], n=4) for n in (1, 2)]
    print(
        f"{name} tokens: {length / ours:,.0f} tokens/s evaluated, {length / plain:,.0f} plain; "
        + "; ".join(
            f"ratio {middle:.3f} ({low:.3f} to {high:.3f}) {what}"
            for (low, middle, high), what in zip(ratios, ("as it comes", "with the same memory settings"), strict=True)
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=3, metavar=("WAY", "WORDS", "LENGTH"))
    arguments = parser.parse_args()
    if arguments.serve:
        way, words, length = arguments.serve
        serve(way, int(words), int(length))
        return
    for name, (words, length) in CASES.items():
        measure(name, words, length)


if __name__ == "__main__":
    main()
