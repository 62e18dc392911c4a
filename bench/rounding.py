"""How much the losses of one model differ by rounding alone: threads, and another implementation of attention.

``factor-search reproduce`` allows several times as much (see docs/how-to/publish-factors.md).
"""

import argparse

import torch

from factor_search.measure.evaluation import Evaluation
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.methods import closed_form
from factor_search.model.loading import load_model
from factor_search.spec import parse_model
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from factor_search.text.documents import documents_from_files
from factor_search.text.samples import first_samples
from factor_search.text.tokens import CachedTokenizer

LENGTH, DOCUMENTS = 2048, 8
METHODS = ("yarn", "none")
WAYS = {"two threads": ("sdpa", 2), "eager attention": ("eager", 1)}


def evaluations(dtype: str, attention: str, threads: int) -> dict[str, Evaluation]:
    """The closed forms on held-out modules."""
    torch.set_num_threads(threads)
    spec = {"id": str(CHECKPOINT), "dtype": dtype, "attention": attention, "device": "cpu"}
    loaded = load_model(parse_model(spec))
    documents = documents_from_files([str(file) for file in held_out_files()])
    samples = first_samples(documents, CachedTokenizer(loaded.tokenizer), LENGTH, DOCUMENTS)
    with LocalEvaluator(loaded, LENGTH) as evaluator:
        forms = {name: closed_form(name, loaded.geometry, LENGTH) for name in METHODS}
        return {name: evaluator.evaluate(factors, samples) for name, factors in forms.items()}


def main() -> None:
    """Print the differences to one thread with SDPA, in nats per token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    for dtype in parser.parse_args().dtype:
        reference = evaluations(dtype, "sdpa", 1)
        for way, (attention, threads) in WAYS.items():
            for name, other in evaluations(dtype, attention, threads).items():
                pairs = zip(other.losses, reference[name].losses, strict=True)
                largest = max(abs(a - b) for a, b in pairs)
                mean = abs(other.summary.loss - reference[name].summary.loss)
                print(f"{dtype:9} {way:16} {name:5} mean loss {mean:.1e}, largest of a document {largest:.1e}")


if __name__ == "__main__":
    main()
