"""Every error as ``application/problem+json`` (RFC 9457)."""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from factor_search.errors import FactorSearchError
from storage.errors import ConflictError, DatabaseError, NotFoundError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
MOST_FAULTS = 50
LONGEST_DETAIL = 2000
FIELD = re.compile(r"((?:model|data|warm_start|training_files|stages)(?:\.[a-z_]+|\.[0-9]+)*): ")
"""With which messages begin that are about what a field of a specification names."""
logger = logging.getLogger(__name__)


class Fault(BaseModel):
    """One thing wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter.")
    detail: str = Field(description="What is wrong there.")


class Problem(BaseModel):
    """Why a request was refused."""

    type: str = Field("about:blank", description="Always about:blank: the status says what kind of problem it is.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="One line: what was found, and what to do next.")
    instance: str = Field(description="Path of the request.")
    errors: list[Fault] | None = Field(None, description="Each thing wrong with the request, where there are several.")


class RefusedError(HTTPException):
    """A request that cannot be served; becomes a problem document.

    FastAPI lets an HTTPException pass where it reads a body, and makes any other error a 400.
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.status = status
        self.faults = list(faults)


def problem_response(
    status: int, detail: str, path: str, *, headers: Mapping[str, str] | None = None, faults: Sequence[Fault] = ()
) -> Response:
    """A problem document as a response."""
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail if len(detail) <= LONGEST_DETAIL else f"{detail[: LONGEST_DETAIL - 3]}...",
        instance=path,
        errors=list(faults[:MOST_FAULTS]) or None,
    )
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(_encodable(content), status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def refusal_of(error: FactorSearchError) -> RefusedError:
    """The refusal that an error of the layers below becomes."""
    match error:
        case DatabaseError():
            logger.error("%s", error)
            retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return RefusedError(503, "the database cannot be reached now: try again in a few seconds", headers=retry)
        case NotFoundError():
            return RefusedError(404, str(error))
        case ConflictError():
            return RefusedError(409, str(error))
        case _:
            field = FIELD.match(str(error))
            faults = (
                [Fault(pointer=json_pointer(field[1].split(".")), detail=str(error)[field.end() :])] if field else []
            )
            return RefusedError(422, str(error), faults=faults)


def faults_of(error: ValidationError, document: Any) -> list[Fault]:
    """The first of pydantic's complaints about a body, each with its place there."""
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:MOST_FAULTS]:
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        faults.append(Fault(pointer=json_pointer(_place_in(document, item["loc"])), detail=message))
    return faults


def _place_in(document: Any, location: Sequence[str | int]) -> list[str | int]:
    """A location in the document that was sent, which pydantic's need not be.

    It names the kinds by which it chose among several models, and the keys of objects that a list or a word stood for.
    """
    place: list[str | int] = []
    for part in location:
        if isinstance(document, dict) and part not in document and document.get("kind") == part:
            continue
        if isinstance(document, list) and isinstance(part, str):
            continue
        if isinstance(document, str | int | float):
            break
        place.append(part)
        inside = isinstance(document, list) or (isinstance(document, dict) and part in document)
        document = document[part] if inside else None
    return place


def json_pointer(place: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901) in the form that a URL's fragment has."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)


def install(app: FastAPI) -> None:
    """Answer every error of an application with a problem document.

    On the event loop: a function that is not a coroutine would wait for one of the threads that requests share.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return problem_response(
            error.status, error.detail, request.url.path, headers=error.headers, faults=error.faults
        )

    async def below(request: Request, error: Exception) -> Response:
        assert isinstance(error, FactorSearchError)
        return await refused(request, refusal_of(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        detail = error.detail
        if error.status_code == 404:
            detail = f"there is no {request.url.path} here: /docs shows what there is"
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_allowed_methods(app, request)))
            detail = f"{request.method} is not possible on {request.url.path}, only {headers['Allow']}"
        return problem_response(error.status_code, detail, request.url.path, headers=headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [
            Fault(pointer=str(item["loc"][-1]), detail=item["msg"].removeprefix("Value error, "))
            for item in error.errors()
        ]
        detail = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults)
        return problem_response(422, detail, request.url.path, faults=faults)

    async def internal(request: Request, error: Exception) -> Response:
        fault = request.app.state.health.fault
        if fault is not None:  # a damaged database gives what nobody expects
            return problem_response(503, fault, request.url.path, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        detail = f"internal error ({type(error).__name__}): see the server's log"
        return problem_response(500, detail, request.url.path)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(FactorSearchError, below)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, internal)


def documented(*statuses: int, **answers: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """What an operation may answer with, for its OpenAPI description.

    Args:
        statuses: of the problems that it may answer with.
        answers: descriptions of good answers, as ``ok``, ``created`` or ``no_content``.
    """
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    described: dict[int | str, dict[str, Any]] = {
        int(HTTPStatus[name.upper()]): answer for name, answer in answers.items()
    }
    return described | {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _allowed_methods(app: FastAPI, request: Request) -> set[str]:
    methods: set[str] = set()
    for method in HTTPMethod:
        scope = dict(request.scope, method=method.value)
        if any(route.matches(scope)[0] == Match.FULL for route in app.routes):
            methods.add(method.value)
    return methods


def _encodable(content: Any) -> Any:
    """The same without lone surrogates, which JSON can hold as escapes but UTF-8 cannot."""
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode()
    if isinstance(content, dict):
        return {key: _encodable(value) for key, value in content.items()}
    return [_encodable(value) for value in content] if isinstance(content, list) else content
