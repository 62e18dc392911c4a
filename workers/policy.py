"""What a submitted job may touch on this machine: whose files, the hub or not, foreign code or not."""

import argparse
import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factor_search.errors import SpecError
from factor_search.model.loading import looks_local
from factor_search.plan.kinds.contract import Access, Work
from factor_search.plan.kinds.search import access_of_job
from factor_search.plan.spec import PlanSpec
from factor_search.spec import DataSpec, JobSpec, ModelSpec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

MATCHES_CHECKED = 100_000
LINKS_CHECKED = 100_000
WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Policy:
    """What the operator of a service allows. The shipped model and the demo's documents are always allowed."""

    roots: tuple[Path, ...]
    """Folders under which models and documents may lie, links followed."""
    allow_hub: bool
    """Whether models and data sets may come from the Hugging Face hub."""
    allow_remote_code: bool
    """Whether a checkpoint's own Python code, or an attention kernel of the hub, may be run."""
    work_folder: Path | None = None
    """Folder of what plans make, whose checkpoints may be used as models; without one there are no plans."""

    def check(self, spec: JobSpec) -> None:
        """Refuse a job that asks for more than is allowed.

        Raises:
            SpecError: naming what is not allowed and how the operator can allow it.
        """
        self._check_access(access_of_job(spec))

    def check_plan(self, plan: PlanSpec) -> None:
        """Refuse a plan that asks for more than is allowed.

        Raises:
            SpecError: see :meth:`check`; or there is no folder for what the plan makes.
        """
        self._check_access(plan.access())

    def check_work(self, work: Work) -> None:
        """Refuse the work of a stage that asks for more than is allowed now.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_access(work.access())

    def check_supplied_checkpoint(self, checkpoint: str) -> None:
        """Refuse a checkpoint that does not lie under a root.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_path(checkpoint, "model")

    def require_work_folder(self) -> Path:
        """The folder of what plans make.

        Raises:
            SpecError: there is none.
        """
        if self.work_folder is None:
            raise SpecError("plans need a folder for what they make: the operator can name one with serve --work DIR")
        return self.work_folder

    def check_model(self, model: ModelSpec) -> None:
        """Refuse a model that is not allowed, or may not run as asked.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_code(model)
        self._check_origin(model)

    def as_arguments(self) -> list[str]:
        """The same policy for another process's command line; see :func:`add_policy_arguments`."""
        roots = [argument for root in self.roots for argument in ("--root", str(root))]
        code = ["--allow-remote-code"] if self.allow_remote_code else []
        made = ["--work", str(self.work_folder)] if self.work_folder is not None else []
        return [*roots, "--hub" if self.allow_hub else "--no-hub", *code, *made]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, *, hub: bool) -> "Policy":
        """What the arguments of :func:`add_policy_arguments` say.

        Args:
            arguments: the parsed command line.
            hub: what holds where neither ``--hub`` nor ``--no-hub`` is given.

        Raises:
            SpecError: a root is no folder.
        """
        roots = []
        for root in arguments.root or [Path.cwd()]:
            if not root.is_dir():
                raise SpecError(f"--root {root} is no folder")
            roots.append(root.resolve())
        allow_hub = hub if arguments.hub is None else arguments.hub
        made = None if arguments.work is None else arguments.work.resolve()
        return cls(tuple(dict.fromkeys(roots)), allow_hub, arguments.allow_remote_code, made)

    def _check_access(self, access: Access) -> None:
        if access.writes:
            self.require_work_folder()
        for model in access.models:
            self.check_model(model)
        if access.data is not None:
            self._check_data(access.data)
        for key, patterns in access.files.items():
            for pattern in patterns:
                self._check_pattern(pattern, key)

    def _check_code(self, model: ModelSpec) -> None:
        if self.allow_remote_code:
            return
        remedy = "the operator must start the service with --allow-remote-code"
        if model.trust_remote_code:
            raise SpecError(f"model.trust_remote_code is not allowed here: {remedy}")
        if "/" in model.attention:  # transformers takes such a name for a kernel on the hub, which is code
            raise SpecError(f"model.attention {model.attention!r} names code on the hub, not allowed here: {remedy}")

    def _check_origin(self, model: ModelSpec) -> None:
        if looks_local(model.id) or _exists(model.id, "model.id"):
            if self.work_folder is None or not _resolved(model.id, "model.id").is_relative_to(
                self.work_folder.resolve()
            ):
                self._check_path(model.id, "model.id")
            return
        self._check_hub(f"model {model.id!r} is no folder here, and")
        revision = model.revision
        if revision is not None and (".." in revision or not re.fullmatch(r"[\w.\-/]+", revision)):
            raise SpecError(f"model.revision {revision!r} is no branch, tag or commit")

    def _check_data(self, data: DataSpec) -> None:
        for pattern in data.files or ():
            self._check_pattern(pattern, "data.files")
        for pattern in data.held_out_files or ():
            self._check_pattern(pattern, "data.held_out_files")
        if data.dataset is None:
            return
        if looks_local(data.dataset) or _exists(data.dataset, "data.dataset"):
            self._check_path(data.dataset, "data.dataset")
        else:
            self._check_hub(f"data set {data.dataset!r} would come from the hub, but")

    def _check_hub(self, what: str) -> None:
        if not self.allow_hub:
            raise SpecError(f"{what} the hub is not allowed here: use a local path, or start the service with --hub")

    def _check_pattern(self, pattern: str, key: str) -> None:
        """Refuse a glob that begins, or at present matches anything, outside the roots."""
        parts = Path(pattern).parts
        fixed = list(itertools.takewhile(lambda part: not WILDCARD.search(part), parts))
        if _exists(pattern, key) or len(fixed) == len(parts):
            self._check_path(pattern, key)
            if len(fixed) == len(parts):
                return
        if ".." in parts[len(fixed) :]:
            raise SpecError(f"{key}: {pattern} has '..' behind a wildcard: write the path without")
        self._check_path(str(Path(*fixed)), key, shown=pattern, whole=False)
        for match in itertools.islice(glob.iglob(pattern, recursive=True), MATCHES_CHECKED):
            self._check_path(match, key)

    def _check_path(self, path: str, key: str, *, shown: str | None = None, whole: bool = True) -> None:
        """Refuse what does not lie under a root; of a folder (if ``whole``) also what links in it lead to."""
        resolved = _resolved(path, key)
        if resolved in _always_allowed():
            return
        remedy = "the operator can allow a folder with --root"
        if not self._is_inside(resolved):
            raise SpecError(f"{key}: {shown or path} is not in a folder that jobs may use: {remedy}")
        if whole and os.path.isdir(resolved):
            for link in itertools.islice(_links(resolved), LINKS_CHECKED):
                if not self._is_inside(_resolved(str(link), key)):
                    raise SpecError(f"{key}: {link} links out of the folders that jobs may use: {remedy}")

    def _is_inside(self, resolved: Path) -> bool:
        return any(resolved.is_relative_to(root.resolve()) for root in self.roots)


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """``--root``, ``--hub`` / ``--no-hub``, ``--allow-remote-code`` and ``--work``."""
    parser.add_argument(
        "--root",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder under which jobs' models and documents may lie; may be repeated; default: the current folder",
    )
    parser.add_argument(
        "--hub", action=argparse.BooleanOptionalAction, help="whether models and data sets may come from the hub"
    )
    parser.add_argument(
        "--allow-remote-code", action="store_true", help="let jobs run Python code that comes with a checkpoint"
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where checkpoints that plans make are kept, seen by all machines that evaluate; default: NAME.work "
        "beside an SQLite database, none for PostgreSQL",
    )


def _always_allowed() -> set[Path]:
    return {CHECKPOINT.resolve(), *(file.resolve() for file in held_out_files())}


def _links(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        for name in itertools.chain(folders, files):
            if (link := Path(place, name)).is_symlink():
                yield link


def _resolved(path: str, key: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise _unusable(path, key, error) from None


def _exists(path: str, key: str) -> bool:
    try:
        return Path(path).resolve().exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(path, key, error) from None


def _unusable(path: str, key: str, error: Exception) -> SpecError:
    reason = getattr(error, "strerror", None) or error
    return SpecError(f"{key}: {path[:100]!r} cannot be a path: {reason}")
