"""The routes of jobs: those that plans have too, evaluations and factors."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from api import deferred
from api.cursors import JOB_ID
from api.estimates import check_memory
from api.problems import RefusedError, documented
from api.records import Records
from api.routes.resource import (
    LARGEST_NUMBER,
    LARGEST_PAGE_BYTES,
    Checked,
    Reports,
    Resource,
    Stores,
    fitting,
    page_answer,
    routes_of,
)
from api.schemas import EXAMPLE_ID, EvaluationPage, Job, JobPage, finite
from api.shown import shown_evaluation
from api.submission import placed_refusals, submitted_spec, with_warm_start
from factor_search.export.registry import ENGINES, REFUSED
from factor_search.factors_file import parse_factors
from factor_search.files.reading import under
from factor_search.measure.request import Measured
from factor_search.spec import JobSpec
from storage.asked import Asked
from storage.events import JOB
from storage.jobs import SEARCHES
from storage.jobs import Job as StoredJob
from storage.states import JobState
from workers.pinning import pinned
from workers.policy import AT_SUBMISSION


def check(stores: Records, spec: JobSpec, ignore_memory: bool) -> Checked:
    """Refuse a search that the policy does not allow or that cannot end well, as far as this is known by now."""
    policy = stores.settings.policy
    policy.check(spec, AT_SUBMISSION)
    with placed_refusals(), under(policy.reading_rules(AT_SUBMISSION)):
        spec = with_warm_start(spec, stores)
        notes = deferred.check_possible(spec)
    if not ignore_memory:
        check_memory(stores, spec)
    return Checked(pinned(spec), Asked.of(spec), notes)


def store(stores: Records, checked: Checked, key: str | None, by: str | None) -> tuple[StoredJob, bool]:
    """Queue a search."""
    return stores.jobs.submit(checked.spec, idempotency_key=key, submitted_by=by, asked=checked.asked)


ROWS_AT_FIRST = 10
"""Evaluations read before it is known how large they are: a thousand of many documents are more than a page holds."""
FACTORS = "factors"
FORMATS = (FACTORS, *ENGINES)


def _known_format(format: str) -> str:
    if format not in FORMATS:
        raise ValueError(REFUSED.get(format) or f"must be one of {', '.join(FORMATS)}")
    return format


def document_of(stores: Records, job: StoredJob, name: str) -> dict[str, Any]:
    """``factors`` or ``report`` of a job.

    Raises:
        RefusedError: it is not a search, or has not finished.
    """
    if job.kind not in SEARCHES:
        raise RefusedError(
            409, f"job {job.id} is not a search, so it has no {name} document: see /v1/plans/{job.plan_id}/report"
        )
    document = stores.jobs.document(job.id, name) if job.state == JobState.FINISHED else None
    if document is None:
        because = f": {job.error}" if job.error else ""
        raise RefusedError(409, f"job {job.id} is {job.state}, so there is no {name} document{because}")
    return document


JOBS = Resource(
    history=JOB,
    ids=JOB_ID,
    example_id=EXAMPLE_ID,
    states=JobState,
    shown=Job,
    page=JobPage,
    spec_schema="JobSpec",
    report_schema="Report",
    parse=submitted_spec,
    check=check,
    store=store,
    on_submit="Queue a search. Sent again with the same Idempotency-Key, it answers with the job of the first time.\n\n"
    "What `warm_start` names in `files` and `jobs` is read now and kept with the job, in `warm_start.factors`.",
    report=lambda stores, job: document_of(stores, job, "report"),
    render=deferred.job_page,
)
router = routes_of(JOBS)
JobId = Annotated[str, JOBS.id_parameter()]


@router.get(
    "/{job_id}/evaluations",
    response_model=EvaluationPage,
    summary="Evaluations of a job",
    responses=documented(404),
)
def evaluations(
    job_id: JobId,
    stores: Stores,
    part: Annotated[
        Measured,
        Query(description="Which documents they were measured on."),
    ] = "search",
    after: Annotated[int, Query(ge=-1, le=LARGEST_NUMBER, description="Only candidates after this number.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
) -> Response:
    """Candidates in the order proposed, whether evaluated already or not; a page also ends after 1 MiB."""
    job, texts, more, wanted = stores.find_job(job_id).id, list[str](), True, ROWS_AT_FIRST
    while more and len(texts) < limit:
        wanted = min(wanted, limit - len(texts))
        rows = stores.evaluations.of_job(job, part=part, after=after, limit=wanted + 1)
        found = [shown_evaluation(row).model_dump_json() for row in rows[:wanted]]
        fit = fitting([*texts, *found])[len(texts) :]
        texts += fit
        after = rows[len(fit) - 1].number if fit else after
        more = len(rows) > len(fit)
        if len(fit) < len(found):
            break
        left = LARGEST_PAGE_BYTES - sum(map(len, texts))
        wanted = 1 + max(0, left * len(texts) // sum(map(len, texts))) if texts else 1
    return page_answer("evaluations", texts, after if more and texts else None)


@router.get(
    "/{job_id}/factors",
    summary="The factors that a job found",
    response_class=JSONResponse,
    responses=documented(
        *(404, 409),
        ok={
            "description": "A factors file, or the JSON that an engine reads with the factors in it",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [{"$ref": "#/components/schemas/FactorsFile"}, {"type": "object"}]}
                }
            },
        },
    ),
)
async def factors(
    job_id: JobId,
    stores: Stores,
    reports: Reports,
    wanted: Annotated[
        str,
        Query(
            alias="format",
            description="factors: the factors file. Others: the JSON that an engine reads, if the format has one.",
            json_schema_extra={"enum": list(FORMATS)},
        ),
        AfterValidator(_known_format),
    ] = FACTORS,
    nearest: Annotated[
        bool, Query(description="Answer with the nearest that the format can express, if not with the factors.")
    ] = False,
) -> Response:
    """The factors as a file, once the job is finished."""
    if wanted == FACTORS:
        return await run_in_threadpool(_factors, stores, job_id)
    return await reports.run(_factors_as, stores, job_id, wanted, nearest)


def _factors(stores: Records, job_id: str) -> Response:
    return JSONResponse(finite(document_of(stores, stores.find_job(job_id), FACTORS)))


def _factors_as(stores: Records, job_id: str, wanted: str, nearest: bool) -> Response:
    job = stores.find_job(job_id)
    document = document_of(stores, job, FACTORS)
    if ENGINES[wanted].document_name is None:
        raise RefusedError(
            409,
            f"the format {wanted} is not a JSON document but {ENGINES[wanted].writes}: download the factors, and run "
            f"factor-search export --format {wanted} where the model is",
        )
    model = job.parse_spec().model
    policy = stores.settings.policy
    policy.check_model(model, AT_SUBMISSION)
    with under(policy.reading_rules(AT_SUBMISSION)):
        return JSONResponse(deferred.engine_document(wanted, parse_factors(document), model, nearest))
