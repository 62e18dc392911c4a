"""What a submitted job may use: which files, the Hugging Face hub or not, remote code or not.

Every field of a specification says what it names (:mod:`factor_search.spec.named`), and here is one check for each kind
of thing. Files that are named inside of files, such as shards in an index, are checked as well.

A specification is checked when it is submitted, again by the coordinator before a worker gets it, and what it names a
third time by the worker, file by file as they are opened (:mod:`factor_search.files.reading`): a worker finds the
documents of a glob anew, so files may be added until a job starts, and no list of files is kept with a job.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from factor_search.errors import DataError, ModelError, SpecError
from factor_search.files.matching import WILDCARD, fixed_part, matching_now, refuse_address
from factor_search.files.reading import ReadingRules, WalkLimit, reading_rules, under, walk_budget
from factor_search.model.checkpoint_files import check_hub_id, checkpoint_files, is_local
from factor_search.plan.kinds.contract import Work
from factor_search.plan.spec import PlanSpec
from factor_search.plan.task_names import check_task_names
from factor_search.report.trackers.registry import TRACKERS, check_installed
from factor_search.spec import DataSpec, JobSpec, ModelSpec, TrackerKind
from factor_search.spec.named import Named, Names, named_in
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from factor_search.text.data_sets import check_hub_name, is_saved, saved_files
from workers.webhooks import AllowedHosts, WebhookError

AT_SUBMISSION = WalkLimit(entries=100_000, seconds=2.0)
"""For all globs of one specification; a thread of the server is busy with them at most so long."""
LATER = WalkLimit(entries=1_000_000, seconds=600.0)
"""For those of a job that was accepted, on a machine that may be slower or busier."""
CODE_REMEDY = "the operator must start the service with --allow-remote-code"


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
    trackers: tuple[TrackerKind, ...] = ()
    """Trackers of experiments to which jobs may report, in the environment of the coordinator."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts to which webhooks may be sent, as ``HOST`` or ``HOST:PORT``."""

    def reading_rules(self, walk: WalkLimit = LATER) -> ReadingRules:
        """The rules for whoever opens files for a job, on this machine.

        Args:
            walk: how far the globs of a specification may search.
        """
        work = () if self.work_folder is None else (self.work_folder.resolve(),)
        return ReadingRules(
            roots=tuple(root.resolve() for root in self.roots),
            model_roots=(CHECKPOINT.resolve(), *work),
            files=frozenset(file.resolve() for file in held_out_files()),
            hub=self.allow_hub,
            walk=walk,
        )

    def close_the_hub(self) -> None:
        """Keep the libraries of this process from the hub, whatever a file names, unless it is allowed."""
        if self.allow_hub:
            return
        os.environ |= {"HF_HUB_OFFLINE": "1", "USE_HUB_KERNELS": "0"}
        hub = sys.modules.get("huggingface_hub.constants")  # which has read the environment, if it is loaded
        if hub is not None:
            hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]

    def check(self, spec: JobSpec, walk: WalkLimit = LATER) -> None:
        """Refuse a job that uses more than is allowed.

        Args:
            spec: the job.
            walk: how far its globs may search.

        Raises:
            SpecError: says what is not allowed and how the operator can allow it.
        """
        self._check(spec, walk=walk)

    def check_plan(self, plan: PlanSpec, walk: WalkLimit = LATER) -> None:
        """Refuse a plan that uses more than is allowed.

        Args:
            plan: the plan.
            walk: how far its globs may search.

        Raises:
            SpecError: see :meth:`check`; or there is no work folder.
        """
        self.require_work_folder()
        self._check(plan, walk=walk)

    def check_work(self, work: Work) -> None:
        """Refuse the work of a stage that uses more than is allowed now.

        Raises:
            SpecError: see :meth:`check`.
        """
        if work.writes:
            self.require_work_folder()
        self._check(work)

    def check_supplied_checkpoint(self, checkpoint: str, walk: WalkLimit = LATER) -> None:
        """Refuse a checkpoint outside the roots.

        Args:
            checkpoint: its folder.
            walk: how far a search in it may go.

        Raises:
            SpecError: see :meth:`check`.
        """
        rules = replace(self.reading_rules(walk), model_roots=())
        rules.check(checkpoint, "model", model=True)
        with under(rules), _as_spec_errors():
            checkpoint_files(ModelSpec(id=os.path.abspath(checkpoint)))

    def require_work_folder(self) -> Path:
        """The folder for the files that plans make.

        Raises:
            SpecError: there is none.
        """
        if self.work_folder is None:
            raise SpecError("plans need a work folder: the operator can set one with serve --work DIR")
        return self.work_folder

    def check_model(self, model: ModelSpec, walk: WalkLimit = LATER) -> None:
        """Refuse a model that is not allowed, or that may not run as specified.

        Args:
            model: the model.
            walk: how far a search in its folder may go.

        Raises:
            SpecError: see :meth:`check`.
        """
        self._check(model, "model.", walk)

    def as_arguments(self) -> list[str]:
        """The policy as arguments for another process's command line; see :func:`add_policy_arguments`."""
        roots = [argument for root in self.roots for argument in ("--root", str(root))]
        code = ["--allow-remote-code"] if self.allow_remote_code else []
        work = ["--work", str(self.work_folder)] if self.work_folder is not None else []
        trackers = [argument for kind in self.trackers for argument in ("--tracker", kind)]
        hosts = [argument for host in self.webhook_hosts for argument in ("--webhook-host", host)]
        return [*roots, "--hub" if self.allow_hub else "--no-hub", *code, *work, *trackers, *hosts]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, *, hub: bool) -> "Policy":
        """The policy that the arguments of :func:`add_policy_arguments` describe.

        Args:
            arguments: the parsed command line.
            hub: whether the hub is allowed if neither ``--hub`` nor ``--no-hub`` is given.

        Raises:
            SpecError: a root is not a folder, a host not a host, or there are trackers and no work folder.
            TrackerError: the package of a tracker is not installed.
        """
        roots = []
        for root in arguments.root or [Path.cwd()]:
            if not root.is_dir():
                raise SpecError(f"--root {root} is not a folder")
            roots.append(root.resolve())
        allow_hub = hub if arguments.hub is None else arguments.hub
        work_folder = None if arguments.work is None else arguments.work.resolve()
        trackers = tuple(dict.fromkeys(arguments.tracker or ()))
        if unknown := [kind for kind in trackers if kind not in TRACKERS]:
            raise SpecError(f"--tracker {unknown[0]!r} is unknown: choose among {', '.join(TRACKERS)}")
        check_installed(trackers)
        if trackers and work_folder is None:
            raise SpecError("--tracker needs a folder for the files of the tracker: add --work DIR")
        hosts = AllowedHosts(tuple(dict.fromkeys(arguments.webhook_host or ()))).hosts
        return cls(tuple(dict.fromkeys(roots)), allow_hub, arguments.allow_remote_code, work_folder, trackers, hosts)

    def _check(self, specification: BaseModel, prefix: str = "", walk: WalkLimit = LATER) -> None:
        with under(self.reading_rules(walk)), _as_spec_errors():
            for named in named_in(specification, prefix):
                CHECKS[named.kind](self, named)


@contextlib.contextmanager
def _as_spec_errors() -> Iterator[None]:
    try:
        yield
    except (DataError, ModelError) as error:
        raise SpecError(str(error)) from None


def _check_nothing(policy: Policy, named: Named) -> None:
    pass


def _check_code(policy: Policy, named: Named) -> None:
    if named.value and not policy.allow_remote_code:
        raise SpecError(f"{named.key} is not allowed here: {CODE_REMEDY}")


def _check_kernel(policy: Policy, named: Named) -> None:
    if policy.allow_remote_code:
        return
    # transformers loads a kernel, which is code, for a name with a slash, and in place of a missing flash_attn
    replaced = named.value.startswith("flash_attention") and importlib.util.find_spec("flash_attn") is None
    if "/" in named.value or (replaced and importlib.util.find_spec("kernels") is not None):
        raise SpecError(f"{named.key} {named.value!r} names code on the hub, which is not allowed here: {CODE_REMEDY}")


def _check_revision(policy: Policy, named: Named) -> None:
    if ".." in named.value or not re.fullmatch(r"[\w.\-/]+", named.value):
        raise SpecError(f"{named.key} {named.value[:200]!r} is not a branch, tag or commit")


def _check_model(policy: Policy, named: Named) -> None:
    refuse_address(named.value, named.key)
    if is_local(named.value):
        reading_rules().check(named.value, named.key, model=True)
        if isinstance(named.holder, ModelSpec):
            checkpoint_files(named.holder)
    elif not policy.allow_hub:
        raise SpecError(
            f"{named.key}: {named.value[:200]!r} is not a folder here, and the hub is not allowed here: use a local "
            "path, or start the service with --hub"
        )
    else:
        check_hub_id(named.value)


def _check_data_set(policy: Policy, named: Named) -> None:
    check_hub_name(named.value)


def _check_tasks(policy: Policy, named: Named) -> None:
    check_task_names(named.value)
    if named.value and not policy.allow_hub:
        raise SpecError(
            f"{named.key}: tasks of lm-evaluation-harness read data sets from the hub, but the hub is not allowed "
            "here: leave them out, or start the service with --hub"
        )


def _check_files(policy: Policy, named: Named) -> None:
    for path in named.value:
        refuse_address(path, named.key)
        reading_rules().check(path, named.key)


def _check_documents(policy: Policy, named: Named) -> None:
    """Refuse a glob that starts outside the roots, or currently matches anything outside them."""
    data = named.holder if isinstance(named.holder, DataSpec) else getattr(named.holder, "data", None)
    split = data.split if isinstance(data, DataSpec) else ""
    for pattern in named.value:
        refuse_address(pattern, named.key)
        start = fixed_part(pattern) if WILDCARD.search(pattern) else pattern
        if ".." in Path(pattern).parts[len(Path(start).parts) :]:
            raise SpecError(f"{named.key}: {pattern} has '..' after a wildcard: write the path without it")
        reading_rules().check(start, named.key, shown=pattern)
        matches = matching_now(pattern)
        with walk_budget().searching():
            for match in matches:
                walk_budget().look(pattern)
                reading_rules().check(match, named.key)
                if os.path.isdir(match) and is_saved(Path(match)):
                    saved_files(Path(match), split)


def _check_trackers(policy: Policy, named: Named) -> None:
    for kind in named.value:
        if kind not in policy.trackers:
            raise SpecError(
                f"{named.key}: {kind} is not allowed here: leave it out, or have the operator start the service with "
                f"--tracker {kind}"
            )


def _check_webhook(policy: Policy, named: Named) -> None:
    try:
        AllowedHosts(policy.webhook_hosts).check(named.value)
    except WebhookError as error:
        raise SpecError(f"{named.key}: {error}") from None


CHECKS: dict[Names, Callable[[Policy, Named], None]] = {
    Names.NOTHING: _check_nothing,
    Names.MODEL: _check_model,
    Names.REVISION: _check_revision,
    Names.KERNEL: _check_kernel,
    Names.CODE: _check_code,
    Names.DOCUMENTS: _check_documents,
    Names.FILES: _check_files,
    Names.DATA_SET: _check_data_set,
    Names.TASKS: _check_tasks,
    Names.TRACKERS: _check_trackers,
    Names.WEBHOOK: _check_webhook,
}
"""What is done with the value of a field, by what it names."""


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that :meth:`Policy.from_arguments` reads."""
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
    parser.add_argument(
        "--tracker",
        action="append",
        choices=list(TRACKERS),
        help="a tracker of experiments to which jobs may report, as the environment of this process says; may be "
        "repeated (default: none)",
    )
    parser.add_argument(
        "--webhook-host",
        action="append",
        metavar="HOST",
        help="a host to which jobs and plans may send webhooks, as HOST or HOST:PORT; may be repeated (default: none)",
    )
