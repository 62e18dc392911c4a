"""Weights & Biases: a run online or offline, as WANDB_MODE says; files are below WANDB_DIR, or in the run's folder."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from factor_search.report.trackers.contract import AXES, Axis, End, RunName, Value, named

PROJECT = "factor-search"
BEGIN_SECONDS, FINISH_SECONDS = 30.0, 15.0
"""For the answer at the beginning of a run, and for uploads at its end, also of a process that ends meanwhile; what
is left stays in files for ``wandb sync``."""


class Run:
    """See :class:`factor_search.report.trackers.contract.Tracker`."""

    def __init__(self, name: RunName) -> None:
        folder = name.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "reached.json"
        """A run that continues offline does not know what it has logged before."""
        self.reached: Mapping[Axis, int] = _reached(self._file)
        self._reached = dict(self.reached)
        wandb.setup(wandb.Settings(silent=True))  # it tells who logs in where, with the password of the address
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=name.id,
            name=name.name,
            group=name.group,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,
                init_timeout=BEGIN_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        for axis in AXES:
            self._run.define_metric(f"by_{axis}/*", step_metric=f"by_{axis}/{axis}")

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As the run's configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def figures(self, values: Mapping[str, float], axis: Axis, at: int) -> None:
        """As history, with an axis of its own for each group."""
        self._run.log(named(values, axis, at))
        self._reached[axis] = at
        self._file.write_text(json.dumps(self._reached))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """As a table."""
        self._run.log(
            {name: wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)}
        )

    def file(self, name: str, content: str) -> None:
        """As an artifact of the run."""
        artifact = wandb.Artifact(f"{self._run.id}-{name.replace('/', '-')}", type="result")
        with artifact.new_file(name) as stream:
            stream.write(content)
        self._run.log_artifact(artifact)

    def end(self, state: End) -> None:
        """The state in the run's summary."""
        self._run.summary["state"] = state
        self._run.finish(exit_code=1 if state == "failed" else 0)


def _reached(file: Path) -> dict[Axis, int]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = json.loads(file.read_text())
        return {axis: int(known[axis]) for axis in AXES if axis in known}
    return {}
