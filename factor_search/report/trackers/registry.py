"""The trackers, by the word in a specification; the packages are imported when a run begins."""

import importlib
import importlib.util
from collections.abc import Iterable
from typing import cast

from factor_search.errors import TrackerError
from factor_search.report.trackers.contract import RunName, Tracker
from factor_search.spec import TrackerKind

TRACKERS: dict[TrackerKind, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
"""The module of this package that has the class ``Run``, and the package that it needs."""

FOLDER = "trackers"
"""Folder in that of the results, or in a service's work folder, for what trackers keep."""


def check_installed(kinds: Iterable[TrackerKind]) -> None:
    """Refuse trackers whose packages are missing, without importing them.

    Raises:
        TrackerError: says how to install them.
    """
    missing = [kind for kind in kinds if importlib.util.find_spec(TRACKERS[kind][1]) is None]
    if missing:
        raise TrackerError(
            f"trackers: {', '.join(missing)} cannot be used, since the package is not installed: "
            f"pip install {' '.join(TRACKERS[kind][1] for kind in missing)}"
        )


def open_run(kind: TrackerKind, name: RunName) -> Tracker:
    """Begin a run in a tracker, or continue it."""
    module = importlib.import_module(f"factor_search.report.trackers.{TRACKERS[kind][0]}")
    return cast(Tracker, module.Run(name))
