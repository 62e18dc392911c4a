"""Small and different models for comparing strategies, trained in minutes by the testbed's recipe and kept.

``python -m bench.models [NAME ...]`` trains missing models into the cache folder. Strategies were designed on the
``develop`` models; the ``judge`` models were not used before the settings were fixed.
"""

import argparse
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from bench.texts import read_text
from factor_search.files.cache import cache_folder
from factor_search.testbed.train import END_OF_TEXT_ID, save, token_stream, train

ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": lambda **settings: LlamaForCausalLM(LlamaConfig(**settings)),
    "qwen3": lambda **settings: Qwen3ForCausalLM(Qwen3Config(**settings)),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its training texts, and the length of its training."""

    name: str
    role: str
    """``develop`` or ``judge``."""
    architecture: str
    text: str
    context: int
    target: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    rope_theta: float
    steps: int
    batch_tokens: int = 16_384
    seed: int = 0

    def build(self) -> PreTrainedModel:
        """The model, randomly initialised."""
        return ARCHITECTURES[self.architecture](
            vocab_size=257,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
            dtype="float32",
        )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="docs-64",
            role="develop",
            architecture="llama",
            text="docstrings",
            context=256,
            target=1024,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=3,
            head_dim=64,
            rope_theta=10_000.0,
            steps=900,
        ),
        Recipe(
            name="headers-32",
            role="develop",
            architecture="qwen3",
            text="headers",
            context=128,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=2,
            head_dim=32,
            rope_theta=100_000.0,
            steps=1200,
        ),
        Recipe(
            name="books-64",
            role="develop",
            architecture="qwen3",
            text="books",
            context=256,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=2,
            head_dim=64,
            rope_theta=10_000.0,
            steps=700,
        ),
        Recipe(
            name="python-32",
            role="develop",
            architecture="llama",
            text="python",
            context=128,
            target=1024,
            hidden=192,
            layers=3,
            heads=6,
            key_value_heads=6,
            head_dim=32,
            rope_theta=10_000.0,
            steps=700,
        ),
        Recipe(
            name="docs-128",
            role="judge",
            architecture="llama",
            text="docstrings",
            context=256,
            target=1536,
            hidden=192,
            layers=3,
            heads=2,
            key_value_heads=1,
            head_dim=128,
            rope_theta=500_000.0,
            steps=600,
            seed=1,
        ),
        Recipe(
            name="headers-64",
            role="develop",
            architecture="qwen3",
            text="headers",
            context=256,
            target=1024,
            hidden=128,
            layers=4,
            heads=2,
            key_value_heads=1,
            head_dim=64,
            rope_theta=500_000.0,
            steps=700,
        ),
        Recipe(
            name="python-64",
            role="develop",
            architecture="llama",
            text="python",
            context=192,
            target=1152,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=1,
            head_dim=64,
            rope_theta=10_000.0,
            steps=700,
            seed=2,
        ),
        Recipe(
            name="books-32",
            role="develop",
            architecture="qwen3",
            text="books",
            context=128,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=4,
            head_dim=32,
            rope_theta=10_000.0,
            steps=300,
            seed=3,
        ),
        Recipe(
            name="python-128",
            role="judge",
            architecture="llama",
            text="python",
            context=256,
            target=1024,
            hidden=192,
            layers=3,
            heads=2,
            key_value_heads=2,
            head_dim=128,
            rope_theta=50_000.0,
            steps=300,
            seed=4,
        ),
    )
}


@dataclass(frozen=True)
class BenchModel:
    """A trained model and documents that are not in its training texts."""

    recipe: Recipe
    folder: Path

    def documents(self) -> list[np.ndarray]:
        """The first ``target`` bytes of every unseen document with that many, as one int64 array a document."""
        return list(np.load(self.folder / "documents.npy").astype(np.int64))


def bench_model(name: str) -> BenchModel:
    """A model by name, which is trained if it is not in the cache."""
    recipe = RECIPES[name]
    folder = cache_folder("bench") / f"{name}-{hash_of(recipe):08x}"
    if not (folder / "documents.npy").exists():
        _train(recipe, folder)
    return BenchModel(recipe, folder)


def hash_of(recipe: Recipe) -> int:
    """A hash of everything that determines the model."""
    return zlib.crc32(repr(replace(recipe, role="")).encode())


def _train(recipe: Recipe, folder: Path) -> None:
    start = time.monotonic()
    training, unseen = read_text(recipe.text)
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    stream = token_stream(training)
    print(
        f"{recipe.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} bytes", flush=True
    )
    train(
        model,
        stream,
        steps=recipe.steps,
        context=recipe.context,
        batch=recipe.batch_tokens // recipe.context,
        muon_rate=6e-3,
        adam_rate=4e-3,
        seed=recipe.seed,
        compiled=True,
    )
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    save(model, building, recipe.context)
    long_enough = [text[: recipe.target] for text in unseen if len(text) >= recipe.target]
    np.save(building / "documents.npy", np.stack([np.frombuffer(text, dtype=np.uint8) for text in long_enough]))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    print(f"{recipe.name}: {len(long_enough)} unseen documents, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Train missing models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(RECIPES)} (default: all)")
    arguments = parser.parse_args()
    for name in arguments.names or RECIPES:
        print(f"{name}: {bench_model(name).folder}")


if __name__ == "__main__":
    main()
