"""Checkpoints of a training: written whole or not at all, the last two kept, refused by another training."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from factor_search.errors import CheckpointError, OutputError, one_line

KEPT = 2
PARTIAL = ".partial-"
WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.safetensors", "state.json"


@dataclass
class Progress:
    """How far a training has come."""

    losses: list[float]
    """Mean loss of each step, nats per token."""
    tokens: int
    """Tokens read."""
    seconds: float
    """Seconds of training, those before interruptions included."""

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)


class Checkpoints:
    """The checkpoints of one training in a folder of their own."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """Use a folder, made if need be.

        Args:
            folder: for nothing but these checkpoints.
            identity: what a training depends on, a hash each.

        Raises:
            OutputError: the folder cannot be made.
        """
        self._folder, self._identity = folder, dict(identity)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for abandoned in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(abandoned)
        except OSError as error:
            raise OutputError(f"cannot use {folder}: {error.strerror or error}") from None

    def save(self, progress: Progress, trained: Mapping[str, nn.Parameter], optimiser: Optimizer) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            OutputError: it cannot be written.
        """
        state = {
            "identity": self._identity,
            "losses": progress.losses,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
        }
        moments = {
            f"{name}/{key}": value
            for name, weight in trained.items()
            for key, value in optimiser.state.get(weight, {}).items()
        }
        try:
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self._folder))
            save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, partial / WEIGHTS)
            save_file({name: value.contiguous() for name, value in moments.items()}, partial / OPTIMISER)
            (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            for file in partial.iterdir():
                to_disk(file)
            final = self._folder / f"step-{progress.steps:08}"
            if final.exists():  # of a run that ended before this one began
                shutil.rmtree(final)
            partial.rename(final)
            to_disk(self._folder)
            for old in self._complete()[:-KEPT]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write a checkpoint to {self._folder}: {one_line(error)}") from None

    def resume(self, trained: Mapping[str, nn.Parameter], optimiser: Optimizer) -> Progress:
        """Put the last checkpoint's weights and moments in place; without one, nothing is done yet.

        Raises:
            CheckpointError: it was written for another training, says for which reason, or cannot be read.
        """
        complete = self._complete()
        if not complete:
            return Progress([], 0, 0.0)
        folder = complete[-1]
        try:
            state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self._check(folder, state["identity"])
            weights, moments = load_file(folder / WEIGHTS), load_file(folder / OPTIMISER)
            _restore(trained, weights, moments, optimiser)
            return Progress(state["losses"], state["tokens"], state["seconds"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint {folder} cannot be read: {one_line(error)}; remove it to go on from the one before"
            ) from None

    def remove(self) -> None:
        """Remove all checkpoints, when the result is written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def _check(self, folder: Path, theirs: Mapping[str, str]) -> None:
        check_identity(str(folder), theirs, self._identity)


def check_identity(what: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Refuse what another training has written.

    Raises:
        CheckpointError: naming in what the two trainings differ.
    """
    different = [name.replace("_", " ") for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise CheckpointError(
            f"{what} belongs to another fine-tuning: it differs in {', '.join(different)}; choose another folder, or "
            "remove it"
        )


@torch.no_grad()
def _restore(
    trained: Mapping[str, nn.Parameter],
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    optimiser: Optimizer,
) -> None:
    if set(weights) != set(trained):
        raise ValueError("it has other weights than those that are trained")
    for name, weight in trained.items():
        weight.copy_(weights[name])
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        weight = trained[name]
        # The count of steps stays on the CPU, as the optimiser has it.
        optimiser.state[weight][moment] = value.clone() if moment == "step" else value.to(weight.device, copy=True)


def to_disk(path: Path) -> None:
    """Wait until a file or folder survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
