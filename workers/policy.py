"""What a submitted job may use: which files, the Hugging Face hub or not, remote code or not."""

import argparse
import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factor_search.errors import SpecError
from factor_search.plan.kinds.contract import Access, Work
from factor_search.plan.kinds.search import access_of_job
from factor_search.plan.spec import PlanSpec
from factor_search.spec import DataSpec, JobSpec, ModelSpec, looks_local
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

MATCHES_CHECKED = 100_000
LINKS_CHECKED = 100_000
WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Policy:
    """What the operator of a service allows. The shipped model and the demo's documents are always allowed."""

    roots: tuple[Path, ...]
    """Folders that may contain models and documents, after following links."""
    allow_hub: bool
    """Whether models and data sets may come from the Hugging Face hub."""
    allow_remote_code: bool
    """Whether a checkpoint's own Python code, or an attention kernel of the hub, may be run."""
    work_folder: Path | None = None
    """Folder for the files that plans make, whose checkpoints may be used as models; without it plans are refused."""

    def check(self, spec: JobSpec) -> None:
        """Refuse a job that uses more than is allowed.

        Raises:
            SpecError: says what is not allowed and how the operator can allow it.
        """
        self._check_access(access_of_job(spec))

    def check_plan(self, plan: PlanSpec) -> None:
        """Refuse a plan that uses more than is allowed.

        Raises:
            SpecError: see :meth:`check`; or there is no work folder.
        """
        self._check_access(plan.access())

    def check_work(self, work: Work) -> None:
        """Refuse the work of a stage that uses more than is allowed now.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_access(work.access())

    def check_supplied_checkpoint(self, checkpoint: str) -> None:
        """Refuse a checkpoint outside the roots.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_path(checkpoint, "model")

    def require_work_folder(self) -> Path:
        """The folder for the files that plans make.

        Raises:
            SpecError: there is none.
        """
        if self.work_folder is None:
            raise SpecError("plans need a work folder: the operator can set one with serve --work DIR")
        return self.work_folder

    def check_model(self, model: ModelSpec) -> None:
        """Refuse a model that is not allowed, or that may not run as specified.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check_code(model)
        self._check_origin(model)

    def as_arguments(self) -> list[str]:
        """The policy as arguments for another process's command line; see :func:`add_policy_arguments`."""
        roots = [argument for root in self.roots for argument in ("--root", str(root))]
        code = ["--allow-remote-code"] if self.allow_remote_code else []
        work = ["--work", str(self.work_folder)] if self.work_folder is not None else []
        return [*roots, "--hub" if self.allow_hub else "--no-hub", *code, *work]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, *, hub: bool) -> "Policy":
        """The policy that the arguments of :func:`add_policy_arguments` describe.

        Args:
            arguments: the parsed command line.
            hub: whether the hub is allowed if neither ``--hub`` nor ``--no-hub`` is given.

        Raises:
            SpecError: a root is not a folder.
        """
        roots = []
        for root in arguments.root or [Path.cwd()]:
            if not root.is_dir():
                raise SpecError(f"--root {root} is not a folder")
            roots.append(root.resolve())
        allow_hub = hub if arguments.hub is None else arguments.hub
        work_folder = None if arguments.work is None else arguments.work.resolve()
        return cls(tuple(dict.fromkeys(roots)), allow_hub, arguments.allow_remote_code, work_folder)

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
        if "/" in model.attention:  # transformers loads such a name as a kernel from the hub, which is code
            raise SpecError(
                f"model.attention {model.attention!r} names code on the hub, which is not allowed here: {remedy}"
            )

    def _check_origin(self, model: ModelSpec) -> None:
        if looks_local(model.id) or _exists(model.id, "model.id"):
            if self.work_folder is None or not _resolved(model.id, "model.id").is_relative_to(
                self.work_folder.resolve()
            ):
                self._check_path(model.id, "model.id")
            return
        self._check_hub(f"model {model.id!r} is not a folder here, and")
        revision = model.revision
        if revision is not None and (".." in revision or not re.fullmatch(r"[\w.\-/]+", revision)):
            raise SpecError(f"model.revision {revision!r} is not a branch, tag or commit")

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
        """Refuse a glob that starts outside the roots, or currently matches anything outside them."""
        parts = Path(pattern).parts
        fixed = list(itertools.takewhile(lambda part: not WILDCARD.search(part), parts))
        if _exists(pattern, key) or len(fixed) == len(parts):
            self._check_path(pattern, key)
            if len(fixed) == len(parts):
                return
        if ".." in parts[len(fixed) :]:
            raise SpecError(f"{key}: {pattern} has '..' after a wildcard: write the path without it")
        self._check_path(str(Path(*fixed)), key, shown=pattern, whole=False)
        for match in itertools.islice(glob.iglob(pattern, recursive=True), MATCHES_CHECKED):
            self._check_path(match, key)

    def _check_path(self, path: str, key: str, *, shown: str | None = None, whole: bool = True) -> None:
        """Refuse a path outside the roots, and with ``whole`` a folder with links that lead outside them."""
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
        help="a folder that may contain models and documents of jobs; may be repeated (default: the current folder)",
    )
    parser.add_argument(
        "--hub",
        action=argparse.BooleanOptionalAction,
        help="allow or refuse models and data sets from the Hugging Face hub",
    )
    parser.add_argument(
        "--allow-remote-code", action="store_true", help="allow jobs to run Python code that comes with a checkpoint"
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for the checkpoints that plans make, visible to all machines with workers (default: NAME.work "
        "beside an SQLite database, none for PostgreSQL)",
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
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, or a loop of links
        raise _unusable(path, key, error) from None


def _exists(path: str, key: str) -> bool:
    try:
        return Path(path).resolve().exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(path, key, error) from None


def _unusable(path: str, key: str, error: Exception) -> SpecError:
    reason = getattr(error, "strerror", None) or error
    return SpecError(f"{key}: {path[:100]!r} is not a valid path: {reason}")
