"""Small and different models for comparing strategies, trained in minutes by the testbed's recipe and kept.

``python -m bench.models [NAME ...]`` trains missing models into the cache folder.
"""

import argparse
import os
import shutil
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.fresh import recipe_of
from bench.recipes import RECIPES, SHIPPED, Recipe
from bench.texts import read_text
from factor_search.files.cache import cache_folder
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from factor_search.testbed.train import save, token_stream, train


@dataclass(frozen=True)
class BenchModel:
    """A trained model and documents that are not in its training texts."""

    recipe: Recipe
    folder: Path

    def documents(self) -> list[np.ndarray]:
        """The first ``target`` bytes of every unseen document with that many, as one int64 array a document."""
        if self.recipe.architecture == SHIPPED:
            texts = [file.read_bytes() for file in held_out_files()]
            return [np.frombuffer(text[: self.recipe.target], np.uint8).astype(np.int64) for text in texts]
        return list(np.load(self.folder / "documents.npy").astype(np.int64))


def bench_model(name: str) -> BenchModel:
    """A model by name, which is trained if it is not in the cache."""
    recipe = recipe_of(name)
    if recipe.architecture == SHIPPED:
        return BenchModel(recipe, CHECKPOINT)
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
    known = f"one of {', '.join(RECIPES)} (default: all), or a fresh judge such as fresh-7-32x"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    arguments = parser.parse_args()
    for name in arguments.names or RECIPES:
        print(f"{name}: {bench_model(name).folder}")


if __name__ == "__main__":
    main()
