"""Where a plan in one process keeps what its stages produce: a folder for each work, found by its identity."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from factor_search.errors import OutputError
from factor_search.files.atomic import cannot_write, to_disk, write_atomically
from factor_search.files.canonical_json import sha256_of
from factor_search.files.json_documents import read_json, write_json
from factor_search.job import IDENTITY
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.work import parse_outcome, parse_work

STORE, LOCK = ".stages", "lock"
WORK, OUTCOME = "work.json", "outcome.json"


class Folders:
    """The folders of one plan's stages, each with its ``work.json`` and, when it has ended, its ``outcome.json``."""

    def __init__(self, out: Path) -> None:
        self._out = out.resolve()
        self._store = self._out / STORE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder within this context.

        Raises:
            OutputError: another process uses it, it cannot be created, or it holds something else.
        """
        try:
            if (self._out / IDENTITY).exists() or ((self._out / "factors.json").exists() and not self._store.exists()):
                raise OutputError(f"{self._out} holds results that are not of a plan: choose another --out")
            self._store.mkdir(parents=True, exist_ok=True)
            with (self._store / LOCK).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputError(f"{self._out} is being written by another process") from None
                yield
        except OSError as error:
            raise OutputError(f"cannot use {self._out}: {error.strerror or error}") from None

    def open(self, work: Work) -> Path:
        """The folder of a work, created if needed; a link to it has the stage's name.

        Raises:
            OutputError: it cannot be created, or something else has its name.
        """
        folder = self._of(work)
        link = self._out / work.stage
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if link.exists() and not link.is_symlink():
                raise OutputError(f"{link} is in the way of the stage's folder: move it, or choose another --out")
            with suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(folder.relative_to(self._out))
        except OSError as error:
            raise cannot_write(link, error) from None
        return folder

    def outcome(self, work: Work) -> Outcome | None:
        """The outcome of a work, if it has ended with the same budget."""
        folder = self._of(work)
        if not (folder / OUTCOME).exists():
            return None
        earlier = parse_work(read_json(folder / WORK, OutputError))
        outcome = parse_outcome(read_json(folder / OUTCOME, OutputError))
        if _asked(earlier) != _asked(work) or (outcome.model and not Path(outcome.model.id).exists()):
            return None
        return outcome

    def begin(self, work: Work) -> Path:
        """The folder of a work that is about to be done.

        Raises:
            OutputError: it cannot be written.
        """
        folder = self.open(work)
        (folder / OUTCOME).unlink(missing_ok=True)
        write_json(folder / WORK, work.model_dump(mode="json"))
        return folder

    def end(self, work: Work, outcome: Outcome) -> None:
        """Store an outcome, which marks the work as done.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            content = json.dumps(outcome.model_dump(mode="json"), allow_nan=False).encode()
            write_atomically(self._of(work) / OUTCOME, content, required=True)
        except OSError as error:
            raise cannot_write(self._of(work) / OUTCOME, error) from None

    def drop(self, stages: set[str]) -> None:
        """Remove the folders of the stages with these names.

        Raises:
            OutputError: it cannot be removed.
        """
        try:
            for folder in self._store.iterdir():
                if (folder / WORK).exists() and read_json(folder / WORK, OutputError)["stage"] in stages:
                    (folder / OUTCOME).unlink(missing_ok=True)  # first: half a folder must not count as done
                    to_disk(folder)
                    shutil.rmtree(folder)
            for stage in stages:
                if os.path.islink(self._out / stage):
                    (self._out / stage).unlink()
        except OSError as error:
            raise OutputError(f"cannot remove what is in {self._store}: {error.strerror or error}") from None

    def _of(self, work: Work) -> Path:
        return self._store / f"{work.kind}-{work.sha256[:16]}"


def _asked(work: Work) -> str:
    """What decides whether a work is done: its identity, and of a search its budget."""
    return sha256_of([work.sha256, work.budget])
