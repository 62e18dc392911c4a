"""Tiny fine-tunings for the tests of them."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from factor_search.factors import Factors
from factor_search.finetune.spec import FinetuneSpec
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.tokens import TokenIds
from tests.families import tiny_model

ORIGINAL, TARGET = 32, 96


def tiny_loaded(folder: Path, model_type: str = "llama", dtype: str = "auto", **overrides: Any) -> LoadedModel:
    """A model of original length 32, loaded from a checkpoint that is written if it is not there."""
    if not folder.exists():
        tiny_model(model_type, **({"max_position_embeddings": ORIGINAL} | overrides)).save_pretrained(folder)
        byte_tokenizer(ORIGINAL).save_pretrained(folder)
    return load_model(ModelSpec(id=str(folder), device="cpu", dtype=dtype))


def factors_for(loaded: LoadedModel, initial_tokens: int = 0) -> Factors:
    return Factors.of([1 + 0.3 * i for i in range(loaded.geometry.pairs)], initial_tokens, 1.1)


def cycles(tokens: int = 150, documents: int = 4) -> list[TokenIds]:
    """Documents that a model learns in a few steps: each goes through the same few words with a stride of its own."""
    return [np.arange(tokens, dtype=np.int64) * (number + 1) % 11 + 3 for number in range(documents)]


def quick(**changes: Any) -> FinetuneSpec:
    settings = {"steps": 8, "batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 2, "checkpoint_every": 3}
    return FinetuneSpec.model_validate(settings | changes)


def weights_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")
