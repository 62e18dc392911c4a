"""Training checkpoints: written atomically, the last two kept, and refused by any other fine-tuning."""

import json
import shutil
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
from factor_search.files.atomic import PARTIAL, move_folder, partial_folder, remove_unused

KEPT = 2
WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.safetensors", "state.json"


@dataclass
class Progress:
    """The progress of a training."""

    losses: list[float]
    """Mean loss of each step, nats per token."""
    tokens: int
    """Tokens read."""
    seconds: float
    """Seconds of training, including those before interruptions."""

    @property
    def steps(self) -> int:
        """The number of finished steps."""
        return len(self.losses)


class Checkpoints:
    """The checkpoints of one training, in a separate folder."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """Open the folder, and create it if it does not exist.

        Args:
            folder: a folder for these checkpoints only.
            identity: hashes of everything that the training depends on, by name.

        Raises:
            OutputError: the folder cannot be created.
        """
        self._folder, self._identity = folder, dict(identity)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for abandoned in [*folder.glob(f".*{PARTIAL}*"), *folder.glob(f"{PARTIAL}*")]:  # the latter by 0.1.0
                remove_unused(abandoned)
        except OSError as error:
            raise OutputError(f"cannot use {folder}: {error.strerror or error}") from None

    def save(self, progress: Progress, trained: Mapping[str, nn.Parameter], optimiser: Optimizer) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            OutputError: the checkpoint cannot be written.
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
            final = self._folder / f"step-{progress.steps:08}"
            with partial_folder(final) as partial:
                save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, partial / WEIGHTS)
                save_file({name: value.contiguous() for name, value in moments.items()}, partial / OPTIMISER)
                (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
                move_folder(partial, final)
            for old in self._complete()[:-KEPT]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write a checkpoint to {self._folder}: {one_line(error)}") from None

    def resume(self, trained: Mapping[str, nn.Parameter], optimiser: Optimizer) -> Progress:
        """Restore weights and moments from the last checkpoint, if there is one, and return the progress.

        Raises:
            CheckpointError: the checkpoint belongs to another training (the message says why), or cannot be read.
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
                f"the checkpoint {folder} cannot be read: {one_line(error)}; remove it to continue from the one before"
            ) from None

    def remove(self) -> None:
        """Remove all checkpoints, after the result has been written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def _check(self, folder: Path, theirs: Mapping[str, str]) -> None:
        check_identity(str(folder), theirs, self._identity)


def identity_in(folder: Path) -> dict[str, str]:
    """Return the identity of the training whose checkpoints a folder contains; empty if there are none to read."""
    complete = sorted(folder.glob("step-*"))
    try:
        found = json.loads((complete[-1] / STATE).read_text(encoding="utf-8"))["identity"] if complete else {}
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_identity(what: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Check that something was written by the same training.

    Raises:
        CheckpointError: it was not; the message names the differences.
    """
    different = [name.replace("_", " ") for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise CheckpointError(
            f"{what} belongs to another fine-tuning: it differs in {', '.join(different)}; choose another folder, or "
            "remove this one"
        )


@torch.no_grad()
def _restore(
    trained: Mapping[str, nn.Parameter],
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    optimiser: Optimizer,
) -> None:
    if set(weights) != set(trained):
        raise ValueError("its weights are not those that are trained")
    for name, weight in trained.items():
        weight.copy_(weights[name])
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        weight = trained[name]
        # The optimiser keeps its count of steps on the CPU.
        optimiser.state[weight][moment] = value.clone() if moment == "step" else value.to(weight.device, copy=True)
