"""The routes that jobs and plans have in common, made from a description of each."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, Header, Path, Query
from pydantic import AfterValidator, BaseModel, WithJsonSchema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from api import retention
from api.cursors import decode_cursor, encode_cursor
from api.events import EventStreams
from api.plan_schemas import Plan
from api.problems import LONGEST_DETAIL, RefusedError, documented
from api.records import Records, records
from api.schemas import Job, Keep, finite
from api.slow_work import SlowWork
from api.submission import checked_idempotency_key, read_body
from storage.asked import Asked
from storage.events import History
from storage.states import ENDED

LARGEST_NUMBER = 2**31 - 1
LARGEST_PAGE_BYTES = 2**20
"""A page of a list ends here, with a cursor for the rest, if not with its limit before."""
STREAM_EXAMPLE = (
    'id: 7\nevent: progress\ndata: {"number": 7, "at": "2026-01-31T12:00:00.250000Z", "kind": "progress", '
    '"data": {"phase": "searching", "generation": 2}}\n\n'
)
Stores = Annotated[Records, Depends(records)]


async def _checks(request: Request) -> SlowWork:
    work: SlowWork = request.app.state.checks
    return work


async def _reports(request: Request) -> SlowWork:
    work: SlowWork = request.app.state.reports
    return work


async def _writes(request: Request) -> SlowWork:
    work: SlowWork = request.app.state.writes
    return work


Checks = Annotated[SlowWork, Depends(_checks)]
"""For what reads folders and configurations, or draws: it may take seconds."""
Reports = Annotated[SlowWork, Depends(_reports)]
"""For documents that are made when they are asked for."""
Writes = Annotated[SlowWork, Depends(_writes)]
"""For what writes records: it may wait for the database's lock."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What is particular to jobs or to plans."""

    history: History
    """Its events, and its name."""
    ids: re.Pattern[str]
    example_id: str
    states: type[StrEnum]
    shown: type[BaseModel]
    """A job or plan in an answer."""
    page: type[BaseModel]
    spec_schema: str
    """Name of the OpenAPI schema of what is submitted."""
    report_schema: str
    """Name of the OpenAPI schema of the report."""
    parse: Callable[[bytes], Any]
    """Reads what is submitted from the body of a request."""
    check: Callable[[Records, Any, bool], "Checked"]
    """Refuses what is submitted if it is not allowed or cannot succeed; the last says to accept what is too large."""
    store: Callable[[Records, "Checked", str | None, str | None], tuple[Any, bool]]
    """Stores what was checked, with idempotency key and id of the API key; returns it, and whether it is new."""
    on_submit: str
    """What the operation's description says of it."""
    report: Callable[[Records, Any], dict[str, Any]]
    """The report of a stored one; refuses before there is any."""
    render: Callable[[dict[str, Any]], str]
    """The report as a page."""

    @property
    def word(self) -> str:
        """``job`` or ``plan``."""
        return self.history.word

    @property
    def path(self) -> str:
        """Of the list."""
        return f"/v1/{self.word}s"

    def id_parameter(self) -> Any:
        """The parameter in the path of each route of one job or plan."""
        return Path(alias=f"{self.word}_id", description=f"Id of a {self.word}.", examples=[self.example_id])


class Checked(NamedTuple):
    """A submission that may be stored."""

    spec: Any
    """The job or plan; names on the hub are commits."""
    asked: Asked
    """The same as it was asked for: what the hub answers may change until the request is repeated."""
    notes: Sequence[str]
    """What was assumed of the model, one sentence each."""


def routes_of(resource: Resource) -> APIRouter:
    """Submitting, listing, reading, pausing, resuming, cancelling, events and report of one resource."""
    router = APIRouter(
        prefix=resource.path, tags=[f"{resource.word}s"], responses=documented(401, 403, 408, 413, 422, 429, 503)
    )
    _add_submission(router, resource)
    _add_list(router, resource)
    _add_reading(router, resource)
    for action, does in _actions(resource.word).items():
        _add_action(router, resource, action, does)
    _add_retention(router, resource)
    _add_events(router, resource)
    _add_report(router, resource)
    return router


def _add_submission(router: APIRouter, resource: Resource) -> None:
    word = resource.word
    earlier = f"The {word} of an earlier request with the same idempotency key"
    location = {"Location": {"description": f"Path of the {word}.", "schema": {"type": "string"}}}
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{resource.spec_schema}"}}}
    key_header = Header(
        description=f"Any text of up to 200 characters; the same key never makes a second {word}.", examples=["k1"]
    )

    @router.post(
        "",
        status_code=201,
        response_model=resource.shown,
        summary=f"Submit a {word}",
        description=resource.on_submit,
        responses=documented(
            *(400, 409, 415),
            ok={"description": earlier, "model": resource.shown},
            created={"description": f"The new {word}", "headers": location},
        ),
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def submit(
        request: Request,
        stores: Stores,
        checks: Checks,
        writes: Writes,
        idempotency_key: Annotated[str | None, key_header] = None,
        ignore_memory: Annotated[bool, Query(description="Accept what needs more memory than any worker has.")] = False,
    ) -> Response:
        key, by = checked_idempotency_key(idempotency_key), request.scope["state"].get("key")
        body = await read_body(request)
        checked = await checks.run(lambda: resource.check(stores, resource.parse(body), ignore_memory))

        def store() -> Response:
            stored, new = resource.store(stores, checked, key, by.id if by else None)
            (shown,) = stores.show(stored)
            notes = [note for note in (shown.note, *checked.notes) if note]
            shown = shown.model_copy(update={"note": "; ".join(notes) or None})
            location = {"Location": f"{resource.path}/{stored.id}"}
            return answer(shown, status=201 if new else 200, headers=location)

        return await writes.run(store)


def _add_list(router: APIRouter, resource: Resource) -> None:
    def known(state: str) -> str:
        if state not in list(resource.states):
            raise ValueError(f"must be one of {', '.join(resource.states)}")
        return state

    schema = WithJsonSchema({"type": "string", "enum": [*resource.states]})
    state_query = Query(description=f"Only {resource.word}s in this state.")

    @router.get("", response_model=resource.page, summary=f"List {resource.word}s")
    def list_all(
        stores: Stores,
        state: Annotated[Annotated[str, AfterValidator(known), schema] | None, state_query] = None,
        limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
        cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
    ) -> Response:
        """Newest first, without specifications; a page also ends after 1 MiB."""
        before = None if cursor is None else decode_cursor(cursor, resource.ids)
        found = stores.store(resource.word).list(state=state, limit=limit + 1, before=before, specifications=False)
        texts = fitting(_outline(one) for one in stores.show(*found[:limit]))
        last = found[len(texts) - 1] if texts else None
        following = encode_cursor(last.submitted_at, last.id) if last and len(found) > len(texts) else None
        return page_answer(f"{resource.word}s", texts, following)


def _outline(shown: Job | Plan) -> str:
    if shown.error is not None and len(shown.error) > LONGEST_DETAIL:
        shown = shown.model_copy(update={"error": f"{shown.error[: LONGEST_DETAIL - 3]}..."})
    return shown.model_dump_json(exclude={"spec"})


def fitting(texts: Iterable[str]) -> list[str]:
    """The first of these JSON texts, as many as a page may hold, and at least one of them."""
    fit: list[str] = []
    total = 0
    for text in texts:
        total += len(text.encode())
        if fit and total > LARGEST_PAGE_BYTES:
            break
        fit.append(text)
    return fit


def page_answer(name: str, texts: Iterable[str], following: str | int | None) -> Response:
    """A page of a list whose items are JSON texts already."""
    content = f'{{"{name}":[{",".join(texts)}],"next":{json.dumps(following)}}}'
    return Response(content, media_type="application/json")


def answer(value: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as a response, made where the value is: not on the event loop."""
    return Response(value.model_dump_json(), status_code=status, headers=headers, media_type="application/json")


def _add_reading(router: APIRouter, resource: Resource) -> None:
    word = resource.word

    @router.get(f"/{{{word}_id}}", response_model=resource.shown, summary=f"One {word}", responses=documented(404))
    def get(id: Annotated[str, resource.id_parameter()], stores: Stores) -> Response:
        """As it is now."""
        return answer(stores.show(stores.find(word, id))[0])


def _actions(word: str) -> dict[str, str]:
    """What each action does, for its description."""
    return {
        "pause": f"Stop a {word} so that it can be resumed; if it is running, at its coordinator's next look.",
        "resume": f"Continue a paused {word} where it stopped; a fine-tuning continues from its last checkpoint.",
        "cancel": f"End a {word} for good; what it has evaluated and made is kept.",
    }


def _add_action(router: APIRouter, resource: Resource, action: str, does: str) -> None:
    @router.post(
        f"/{{{resource.word}_id}}/{action}",
        response_model=resource.shown,
        name=action,
        summary=f"{action.capitalize()} a {resource.word}",
        description=does,
        responses=documented(404, 409),
    )
    async def act(id: Annotated[str, resource.id_parameter()], stores: Stores, writes: Writes) -> Response:
        steer = getattr(stores.store(resource.word), action)
        return await writes.run(lambda: answer(stores.show(steer(stores.find(resource.word, id).id))[0]))


def _add_retention(router: APIRouter, resource: Resource) -> None:
    word = resource.word
    whose = "It needs the scope admin, or the key by which it was submitted."

    @router.delete(
        f"/{{{word}_id}}",
        status_code=204,
        name="delete",
        summary=f"Delete a {word}",
        description=f"Delete a {word} that has ended, with its events, its study, and evaluations and folders that "
        f"nothing else refers to. {whose}",
        responses=documented(404, 409),
    )
    async def delete(
        id: Annotated[str, resource.id_parameter()], stores: Stores, request: Request, writes: Writes
    ) -> None:
        def deleted() -> None:
            found = stores.find(word, id).id
            retention.check_may_change(request, stores, word, found)
            retention.delete(stores, word, found)

        await writes.run(deleted)

    @router.post(
        f"/{{{word}_id}}/keep",
        response_model=resource.shown,
        name="keep",
        summary=f"Keep a {word}",
        description=f"Keep a {word} under a name when others are aged out; null ends that. {whose}",
        responses=documented(400, 404, 409),
    )
    async def keep(
        id: Annotated[str, resource.id_parameter()], stores: Stores, request: Request, writes: Writes, keep: Keep
    ) -> Response:
        def kept() -> Response:
            found = stores.find(word, id).id
            retention.check_may_change(request, stores, word, found)
            stores.retention.keep(word, found, keep.name)
            return answer(stores.show(stores.find(word, found))[0])

        return await writes.run(kept)


def _add_events(router: APIRouter, resource: Resource) -> None:
    word = resource.word

    @router.get(
        f"/{{{word}_id}}/events",
        summary=f"Watch a {word}",
        description=f"All events from the first, or after a number, and then each as it happens, until the {word} has "
        "ended.",
        response_class=StreamingResponse,
        responses=documented(
            404,
            ok={
                "description": "Server-sent events, each with its number as id, its kind as event and an Event as data",
                "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
            },
            no_content={"description": f"The {word} has ended and there are no more events: do not reconnect"},
        ),
    )
    def events(
        id: Annotated[str, resource.id_parameter()],
        stores: Stores,
        request: Request,
        after: Annotated[
            int, Query(ge=0, le=LARGEST_NUMBER, description="Only events after this number; Last-Event-ID goes first.")
        ] = 0,
        last_event_id: Annotated[str | None, Header(description="Number of the last event that was seen.")] = None,
    ) -> Response:
        stored = stores.find(word, id)
        start = _number_of(last_event_id) if last_event_id else after
        if start > stored.events:
            detail = f"{word} {stored.id} has {stored.events} events, so nobody can have seen number {start}"
            raise RefusedError(422, detail)
        if stored.state in ENDED and start == stored.events:
            return Response(status_code=204)
        streams: EventStreams = request.app.state.streams
        streams.check_room()
        return StreamingResponse(
            streams.of(stored.id, start, resource.history),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _number_of(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 10):
        raise RefusedError(422, "the Last-Event-ID header must be the number of an event")
    return int(last_event_id)


def _add_report(router: APIRouter, resource: Resource) -> None:
    word = resource.word
    schema = {"$ref": f"#/components/schemas/{resource.report_schema}"}

    @router.get(
        f"/{{{word}_id}}/report",
        summary=f"The report of a {word}",
        description="Everything measured, with its uncertainty, of a finished job or the finished stages of a plan.",
        response_class=JSONResponse,
        responses=documented(
            *(404, 409),
            ok={
                "description": "The report, as JSON or as a page",
                "content": {"application/json": {"schema": schema}, "text/html": {"schema": {"type": "string"}}},
            },
        ),
    )
    async def report(
        id: Annotated[str, resource.id_parameter()],
        stores: Stores,
        reports: Reports,
        wanted: Annotated[
            Literal["json", "html"] | None,
            Query(alias="format", description="Default: what the Accept header prefers."),
        ] = None,
        accept: Annotated[str, Header(description="text/html asks for the page.")] = "",
    ) -> Response:
        def made() -> Response:
            document = finite(resource.report(stores, stores.find(word, id)))
            if (wanted or preferred(accept)) == "json":
                return JSONResponse(document, headers={"Vary": "Accept"})
            return HTMLResponse(resource.render(document), headers={"Vary": "Accept"})

        return await reports.run(made)


def preferred(accept: str) -> str:
    """``html`` or ``json``, whichever an Accept header names first; browsers begin with html."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    known = [kind for kind in kinds if kind in ("text/html", "application/json")]
    return "html" if known[:1] == ["text/html"] else "json"
