"""Advancing plans: when a stage ends, the job of the next one is queued, or an identical finished job is reused."""

import itertools
import logging
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from factor_search.errors import FactorSearchError, ModelLoadError, one_line
from factor_search.files.canonical_json import sha256_of
from factor_search.files.matching import matching_files
from factor_search.files.reading import under
from factor_search.model.content import files_of
from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.contract import Access, Execution, Work
from factor_search.plan.spec import parse_plan
from factor_search.plan.work import parse_outcome, work_of
from storage.errors import StorageError
from storage.plan_steps import PlanSteps
from storage.plans import Plan
from workers.aside import aside
from workers.attempts import PREPARE_SECONDS, PrepareTimeoutError
from workers.policy import Policy

STEPS_AT_ONCE = 100
SLOW_SECONDS = 2.0
"""A step that takes longer no longer holds up other plans."""

logger = logging.getLogger(__name__)


class PlanScheduler:
    """Advances the plans of a database; any number of schedulers may run, and each step is taken once."""

    def __init__(self, steps: PlanSteps, policy: Policy, prepare_seconds: float = PREPARE_SECONDS) -> None:
        self._steps = steps
        self._policy = policy
        self._prepare_seconds = prepare_seconds
        self._slow: dict[str, tuple[Plan, float, Future[bool]]] = {}
        """Steps that take long, by the plan's id, with their beginning by the monotonic clock."""

    def round(self) -> None:
        """Advance all plans that are due as far as possible now.

        Raises:
            StorageError: the database cannot be reached.
        """
        for plan, began, step in list(self._slow.values()):
            self._look_after(plan, began, step)
        for _ in range(STEPS_AT_ONCE):
            if not any(self._advance_or_leave(plan) for plan in self._steps.due(without=self._slow)):
                return

    def _advance_or_leave(self, plan: Plan) -> bool:
        """Take one step of a plan; one that takes long, as on a slow disk, continues beside other plans."""
        began, step = time.monotonic(), aside(lambda: self._advance(plan), f"plan-{plan.id}")
        wait([step], timeout=SLOW_SECONDS)
        if step.done():
            return step.result()
        self._slow[plan.id] = plan, began, step
        return False

    def _look_after(self, plan: Plan, began: float, step: "Future[bool]") -> None:
        """Forget a slow step that is done, or that its plan no longer needs, and let a plan fail whose step hangs."""
        if step.done():
            del self._slow[plan.id]
            step.result()
        elif not self._steps.is_due(plan):
            del self._slow[plan.id]
        elif time.monotonic() - began > self._prepare_seconds:
            self._steps.fail(plan, str(PrepareTimeoutError("looking for the files", self._prepare_seconds)))
            del self._slow[plan.id]

    def _advance(self, plan: Plan) -> bool:
        """Take one step of a plan, or let the plan fail; true if the step was taken here."""
        try:
            with under(self._policy.reading_rules()):
                return self._steps.conclude(plan) if plan.job is not None else self._begin(plan)
        except StorageError:
            raise
        except FactorSearchError as error:
            failed = {"event": "failed", "plan": plan.id, "stage": plan.present and plan.present.name}
            logger.info("plan %s failed: %s", plan.id, error, extra=failed)
            return self._steps.fail(plan, str(error))
        except Exception as error:
            logger.exception("plan %s failed with an internal error", plan.id)
            return self._steps.fail(plan, f"internal error: {type(error).__name__}: {one_line(error)}")

    def _begin(self, plan: Plan) -> bool:
        """Start the current stage, unless an identical finished job has its result."""
        before = [parse_outcome(stage.outcome) for stage in plan.stages[: plan.stage]]
        work = work_of(parse_plan(plan.spec, stored=True), plan.stage, before)
        _check_there(work, plan)
        self._policy.check_work(work)
        document = work.model_dump(mode="json")
        if kind_of(work).execution == Execution.CHECKPOINT:
            return self._steps.wait(plan, document)
        sha256, earlier = identity(work), earlier_identity(work)
        for job_id, outcome in [*self._steps.finished_jobs(sha256), *self._steps.finished_jobs(earlier)]:
            if _is_there(outcome):
                return self._steps.reuse(plan, work=document, job_id=job_id, outcome=outcome)
        if self._steps.has_begun(plan, earlier):
            sha256 = earlier  # the folder of what it has done is named by it
        name, job = work.as_job(plan.name)
        return self._steps.queue(plan, work=document, kind=work.kind, spec=job, spec_sha256=sha256, name=name)


def identity(work: Work) -> str:
    """A hash of everything that the result of a stage depends on: stages with equal hashes have equal results.

    Besides the work itself it covers the budget of a search and the versions of local files, given by their sizes,
    modification times and inodes. The time of change is left out, since an export that links weights changes it. So are
    device and versions of libraries: a finished stage, such as a checkpoint tuned for days, stays what it is, and its
    report says with which versions it was made.
    """
    access = work.access()
    model = Path(access.models[0].id)
    weights = files_of(model, own_code=access.models[0].trust_remote_code) if model.is_dir() else {}
    files = [*_files_of(access), *(file for name, file in weights.items() if "/" in name and file.is_file())]
    versions = [[str(file), one.st_size, one.st_mtime_ns, one.st_ino] for file in files for one in [file.stat()]]
    return sha256_of([work.sha256, work.budget, versions])


def earlier_identity(work: Work) -> str:
    """The identity that earlier versions gave a stage, whose results are reused."""
    budget = [] if work.budget is None else [work.budget]
    files = _files_of(work.access())
    return sha256_of(
        [work.sha256, *budget, [[str(file), one.st_size, one.st_mtime_ns] for file in files for one in [file.stat()]]]
    )


def _files_of(access: Access) -> list[Path]:
    """The files that are read: documents, then the model."""
    data, model = access.data, Path(access.models[0].id)
    patterns = [] if data is None else [*(data.files or ()), *(data.held_out_files or ())]
    patterns += itertools.chain.from_iterable(access.files.values())
    files = [Path(file) for pattern in patterns for file in matching_files(pattern)]
    if model.is_dir():
        files += sorted(file for file in model.iterdir() if file.is_file())
    elif model.is_file():
        files.append(model)
    return files


def _check_there(work: Work, plan: Plan) -> None:
    """Refuse a stage whose model was deleted, and name the stage that can make it again."""
    needed = work.access().models[0].id
    for stage in plan.stages[: plan.stage]:
        model = (stage.outcome or {}).get("model")
        if model is not None and model["id"] == needed and not _is_there({"model": model}):
            raise ModelLoadError(
                f"the checkpoint {needed} of {stage.name} is missing: restore it, or retry from {stage.name}"
            )


def _is_there(outcome: dict[str, Any]) -> bool:
    """Whether the checkpoint of a finished job, if it has one, still exists."""
    model = outcome["model"]
    return model is None or (Path(model["id"]) / "config.json").is_file()
