"""A job specification, or a plan, from the body of a request, refused with every reason why."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from api.problems import Fault, RefusedError, faults_of, json_pointer
from api.records import Records
from factor_search.errors import DataError, FactorsError, ModelError
from factor_search.files.json_documents import explain
from factor_search.plan.spec import PlanSpec, is_plan
from factor_search.search.warm_start import embedded
from factor_search.spec import JobSpec
from storage.errors import NotFoundError
from storage.states import JobState

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs: no path, id or name has them, and PostgreSQL cannot store all."""
MOST_VALUES = 20_000
"""In a specification, by its commas. Ten thousand names of files are fewer; more would keep everybody else waiting."""
MOST_KEYS = 1000
"""In an object of a specification: pydantic would complain of each that it does not know, in one step that nothing else
runs beside."""
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")

Spec = TypeVar("Spec", JobSpec, PlanSpec)
PLACES = {ModelError: "model", DataError: "data", FactorsError: "warm_start"}
"""Fields of a specification by the errors about what they name."""
_JSON_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
_JSON_NAMES[type(None)] = "null"


async def read_body(request: Request) -> bytes:
    """The body of a request, which says that it is JSON.

    Raises:
        RefusedError: it says otherwise, or the body does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RefusedError(415, f"the Content-Type is {kind or 'missing'}: send application/json")
    try:
        return await request.body()
    except ClientDisconnect:
        raise RefusedError(400, "the connection was closed before the whole body came") from None


def submitted_spec(body: bytes) -> JobSpec:
    """The specification in a request's body.

    Raises:
        RefusedError: it is not JSON, or not a valid specification.
    """
    document = _document(body)
    if is_plan(document):
        raise RefusedError(422, "'stages' and 'recipe' are of plans, which go to /v1/plans")
    return _validated(JobSpec, document, "specification")


def submitted_plan(body: bytes) -> PlanSpec:
    """The plan in a request's body.

    Raises:
        RefusedError: it is not JSON, or not a valid plan.
    """
    document = _document(body)
    if not is_plan(document):
        raise RefusedError(422, "a plan has 'stages' or a 'recipe'; a single search goes to /v1/jobs")
    return _validated(PlanSpec, document, "plan")


def submitted_either(body: bytes) -> JobSpec | PlanSpec:
    """The job or plan in a request's body.

    Raises:
        RefusedError: it is not JSON, or neither.
    """
    document = _document(body)
    if is_plan(document):
        return _validated(PlanSpec, document, "plan")
    return _validated(JobSpec, document, "specification")


def _validated(model: type[Spec], document: dict[str, Any], what: str) -> Spec:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = faults_of(error, document)
        raise RefusedError(422, f"the {what} is not valid: {explain(error)}", faults=faults) from None


def _document(body: bytes) -> dict[str, Any]:
    if body.count(b",") > MOST_VALUES:
        detail = "name files by a pattern such as 'books/*.txt'"
        raise RefusedError(422, f"the body has more than {MOST_VALUES:,} values: {detail}")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not UTF-8 text: byte {error.start} is wrong") from None
    except RecursionError:
        raise RefusedError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RefusedError(422, f"a specification is a JSON object, not {_JSON_NAMES[type(document)]}")
    unprintable = [
        Fault(pointer=place, detail="a control character or half a surrogate") for place in _unprintable(document)
    ]
    if unprintable:
        raise RefusedError(422, f"{unprintable[0].pointer}: {unprintable[0].detail}: remove it", faults=unprintable)
    return document


@contextmanager
def placed_refusals() -> Iterator[None]:
    """Let the refusal of a model, its documents or its warm start name the field that is about them.

    Raises:
        RefusedError: instead of the error of the layers below.
    """
    try:
        yield
    except (ModelError, DataError, FactorsError) as error:
        place = next(place for kind, place in PLACES.items() if isinstance(error, kind))
        raise RefusedError(422, str(error), faults=[Fault(pointer=json_pointer((place,)), detail=str(error))]) from None


def checked_idempotency_key(key: str | None) -> str | None:
    """The Idempotency-Key header, if it can be one.

    Raises:
        RefusedError: it is empty, too long or has other than visible characters.
    """
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise RefusedError(422, "the Idempotency-Key header must be 1 to 200 visible ASCII characters, such as a UUID")
    return key


def with_warm_start(spec: JobSpec, stores: Records) -> JobSpec:
    """The specification with all factors that its search starts from embedded, so that every driver sees the same.

    Raises:
        RefusedError: a job that it names does not exist, or is not finished.
        FactorsError: a file that it names cannot be read, or does not contain factors.
    """
    return embedded(spec, lambda job_id: _factors_of(job_id, spec, stores))


def _factors_of(job_id: str, spec: JobSpec, stores: Records) -> dict[str, Any]:
    try:
        state = stores.find_job(job_id).state
        factors = stores.jobs.document(job_id, "factors")
    except NotFoundError as error:
        detail = str(error)
    else:
        if state == JobState.FINISHED and factors is not None:
            return factors
        detail = f"job {job_id} is {state} and has no factors: only a finished job has"
    place = json_pointer(("warm_start", "jobs", spec.warm_start.jobs.index(job_id)))
    raise RefusedError(422, f"warm_start.jobs: {detail}", faults=[Fault(pointer=place, detail=detail)])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise RefusedError(422, f"an object of the body has more than {MOST_KEYS:,} keys")
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} is given twice in one object")
            seen.add(key)
    return document


def _unprintable(document: Any) -> Iterator[str]:
    """JSON pointers to all strings and keys with characters that no specification has."""
    left: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while left:
        place, value = left.pop()
        if isinstance(value, str) and UNPRINTABLE.search(value):
            yield json_pointer(place)
        elif isinstance(value, dict):
            if any(UNPRINTABLE.search(key) for key in value):
                yield f"{json_pointer(place)} (a key)"
            else:
                left.extend(((*place, key), item) for key, item in value.items())
        elif isinstance(value, list):
            left.extend(((*place, number), item) for number, item in enumerate(value))
