"""What a user with a GGUF file alone gets: a search, the patched file, and llama.cpp's perplexity on unseen documents.

    python -m bench.gguf_alone [--candidates 120]

The file is the shipped model as Q4_1. The documents are source files that the model was not trained on; the last of
them are not part of the search. llama.cpp reads the quantised file as it is.
"""

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bench.gguf_writer import Q4_1, write_model
from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.export.verification.llama_cpp import LlamaCpp
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.interface import search_factors
from factor_search.methods import closed_form
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.model.losses import token_losses
from factor_search.spec import ModelSpec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

LENGTH, UNSEEN = 2048, 12
Losses = NDArray[np.float64]
"""Nats per token, shape (documents,)."""


def engine_losses(file: Path, documents: list[list[int]]) -> Losses:
    """The mean loss of each document in llama.cpp."""
    every = range(1, LENGTH)
    return np.array([-np.mean(LlamaCpp().log_probabilities(file, ids, every)) for ids in documents])


@torch.inference_mode()
def transformers_losses(loaded: LoadedModel, found: FactorsFile, documents: list[list[int]]) -> Losses:
    """The same with factors injected into transformers."""
    with Injector(loaded.model, loaded.geometry) as injector, injector.using([found.factors]):
        losses = [token_losses(loaded.model, torch.tensor([ids])).double().mean().item() for ids in documents]
    return np.array(losses)


def main() -> None:
    """Search, export, score, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=120)
    candidates = parser.parse_args().candidates
    files = [file for file in held_out_files() if file.stat().st_size > LENGTH]
    documents = [list(file.read_bytes()[:LENGTH]) for file in files[-UNSEEN:]]
    with tempfile.TemporaryDirectory() as folder:
        source = write_model(
            Path(folder, "shipped.gguf"), AutoModelForCausalLM.from_pretrained(CHECKPOINT).float(), quantised=Q4_1
        )
        spec = ModelSpec(id=str(source), dtype="float32", device="cpu")
        data = {
            "files": [str(file) for file in files[:-UNSEEN]],
            "search_documents": 4,
            "validation_documents": 4,
            "held_out_files": [str(file) for file in files[-UNSEEN:]],
            "held_out_documents": UNSEEN,
        }
        result = search_factors(
            spec.model_dump(),
            data=data,
            target_length=LENGTH,
            space={"initial_tokens": [0]},
            budget={"candidates": candidates},
            out=Path(folder, "results"),
        )
        loaded = load_model(spec)
        yarn = closed_form("yarn", loaded.geometry, LENGTH)
        compared = {
            "found": result.factors,
            "yarn": factors_file(yarn, FactorsModel.of(spec.id, None, loaded.geometry), LENGTH),
        }
        engine: dict[str, Losses] = {}
        for name, factors in compared.items():
            (out,) = export("gguf", Source(factors, spec), Path(folder, f"{name}.gguf")).files
            engine[name] = engine_losses(out, documents)
            ours, theirs = transformers_losses(loaded, factors, documents).mean(), engine[name].mean()
            print(
                f"{name:6} perplexity in llama.cpp {math.exp(theirs):.4f}, in transformers {math.exp(ours):.4f}: "
                f"{math.expm1(theirs - ours):+.2%}"
            )
    difference = engine["yarn"] - engine["found"]
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    print(
        f"yarn - found in llama.cpp: {difference.mean():.4f} ± {error:.4f} nats on {len(difference)} documents, "
        f"{difference.mean() / error:.1f} standard errors"
    )


if __name__ == "__main__":
    main()
