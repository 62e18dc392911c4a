"""A typed client of the REST interface, for scripts and notebooks; the command line is built on it."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from api.client_errors import BY_STATUS, ConflictError, NotFoundError, ServiceError, UnauthorisedError, UnreachableError
from api.event_stream import read_stream
from api.schemas import ENDED, Evaluation, EvaluationPage, Event, Health, Job, JobPage
from factor_search.errors import one_line
from factor_search.spec import JobSpec

DEFAULT_URL = "http://127.0.0.1:8400"
TIMEOUT_SECONDS = 30.0
STREAM_SILENCE_SECONDS = 60.0
"""The server speaks at least every 15 seconds; a longer silence is a broken connection."""
ATTEMPTS = 3
LONGEST_WAIT_SECONDS = 5.0

Value = TypeVar("Value", bound=BaseModel)

__all__ = [
    "Client",
    "ConflictError",
    "Evaluation",
    "Event",
    "Health",
    "Job",
    "NotFoundError",
    "ServiceError",
    "UnauthorisedError",
    "UnreachableError",
]


class Client:
    """Talks to one server; a context manager, and safe to use from several threads."""

    def __init__(self, url: str | None = None, key: str | None = None, *, patience_seconds: float = 300.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the server; default ``$FACTOR_SEARCH_URL``, else this machine's.
            key: an API key; default ``$FACTOR_SEARCH_KEY``, else none.
            patience_seconds: how long a watched server may be away before that is an error.

        Raises:
            ServiceError: the URL or the key cannot be one.
        """
        self.url = (url or os.environ.get("FACTOR_SEARCH_URL") or DEFAULT_URL).rstrip("/")
        key = key or os.environ.get("FACTOR_SEARCH_KEY")
        self._patience = patience_seconds
        try:
            parsed = urlsplit(self.url)
            usable = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
        except ValueError as error:
            raise ServiceError(f"{self.url!r} is no URL: {one_line(error)}") from None
        if not usable:
            raise ServiceError(f"{self.url!r} is no URL of a server, such as {DEFAULT_URL}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ServiceError(
                "the key has characters that no key has: set FACTOR_SEARCH_KEY to what keys create printed"
            )
        self.is_local = parsed.hostname in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_SECONDS,
            trust_env=not self.is_local,  # a proxy cannot reach our own loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def submit(self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """Queue a job.

        Args:
            spec: what to search.
            idempotency_key: the same key never makes a second job. By default each call has one of its own, so a
                request that is sent again after a broken connection makes one job too.
        """
        if isinstance(spec, JobSpec):
            spec = spec.model_dump(mode="json", exclude_unset=True)
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _parsed(Job, self._request("POST", "/v1/jobs", json=dict(spec), headers=headers))
            except UnreachableError as error:
                if attempt == ATTEMPTS or isinstance(error.__cause__, httpx.ConnectError):
                    raise
                time.sleep(attempt)
        raise AssertionError("not reached")

    def jobs(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Jobs, newest first.

        Args:
            state: only those in this state.
            limit: at most so many; default all.
        """
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            query = {"state": state, "cursor": cursor, "limit": min(left or 100, 100)}
            page = _parsed(JobPage, self._get("/v1/jobs", query))
            yield from page.jobs
            cursor = page.next
            if cursor is None:
                return
            left = None if left is None else left - len(page.jobs)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return _parsed(Job, self._get(_path(job_id)))

    def find(self, prefix: str) -> Job:
        """The one job whose id begins so.

        Raises:
            ServiceError: there is none, or more than one.
        """
        if len(prefix) >= 24 and prefix.isalnum():
            return self.job(prefix)
        found = []
        for job in self.jobs() if prefix.isalnum() else ():
            if job.id.startswith(prefix):
                found.append(job)
            elif found and job.id < prefix:
                break  # ids sort by time
        if len(found) == 1:
            return found[0]
        if not found:
            raise NotFoundError(f"no job's id begins with {prefix!r}: factor-search jobs lists them", 404)
        some = ", ".join(job.id for job in found[:3])
        raise NotFoundError(f"the ids of {len(found)} jobs begin with {prefix} ({some}, ...): give more of it", 404)

    def pause(self, job_id: str) -> Job:
        """Stop a job so that it can be resumed."""
        return _parsed(Job, self._request("POST", _path(job_id, "pause")))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return _parsed(Job, self._request("POST", _path(job_id, "resume")))

    def cancel(self, job_id: str) -> Job:
        """End a job for good."""
        return _parsed(Job, self._request("POST", _path(job_id, "cancel")))

    def events(
        self, job_id: str, after: int = 0, *, on_interruption: Callable[[UnreachableError], None] | None = None
    ) -> Iterator[Event]:
        """Events after a number, those to come included, until the job has ended: each once, in order.

        A connection that breaks is made again, from the event last seen; a server may be away for as long as this
        client is patient.

        Args:
            job_id: the job.
            after: number of the last event not wanted.
            on_interruption: hears of each broken connection.
        """
        lost_at: float | None = None
        answered = False
        while True:
            try:
                for event in self._stream(job_id, after):
                    answered, lost_at = True, None
                    if event is None:
                        continue
                    after = event.number
                    yield event
                    if event.kind in ENDED:
                        return
                if self._has_ended(job_id, after):
                    return
                time.sleep(1)  # the server is about to go: its successor tells the rest
            except UnreachableError as error:
                lost_at = lost_at or time.monotonic()
                away = time.monotonic() - lost_at
                if not answered or away > self._patience:
                    raise
                if on_interruption is not None:
                    on_interruption(error)
                time.sleep(min(1.0 + away / 5, LONGEST_WAIT_SECONDS))

    def wait(self, job_id: str) -> Job:
        """The job once it has ended."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def evaluations(self, job_id: str, *, part: str = "search", after: int = -1) -> Iterator[Evaluation]:
        """A job's candidates on one part of the documents, in the order proposed."""
        following: int | None = after
        while following is not None:
            query = {"part": part, "after": following, "limit": 500}
            page = _parsed(EvaluationPage, self._get(_path(job_id, "evaluations"), query))
            yield from page.evaluations
            following = page.next

    def factors(self, job_id: str, format: str = "factors") -> dict[str, Any]:
        """The factors that a finished job found, as ``factors`` file or as ``huggingface`` configuration."""
        document: dict[str, Any] = self._get(_path(job_id, "factors"), {"format": format}).json()
        return document

    def report(self, job_id: str) -> dict[str, Any]:
        """The report of a finished job."""
        document: dict[str, Any] = self._get(_path(job_id, "report"), {"format": "json"}).json()
        return document

    def report_html(self, job_id: str) -> str:
        """The report of a finished job as a page."""
        return self._get(_path(job_id, "report"), {"format": "html"}).text

    def health(self) -> Health:
        """That the server answers, and its version."""
        return _parsed(Health, self._get("/healthz"))

    def _stream(self, job_id: str, after: int) -> Iterator[Event | None]:
        """What one connection tells: None when it is made, then each event."""
        silence = httpx.Timeout(TIMEOUT_SECONDS, read=STREAM_SILENCE_SECONDS)
        headers = {"Last-Event-ID": str(after)}
        try:
            with self._http.stream("GET", _path(job_id, "events"), headers=headers, timeout=silence) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield None
                for data in read_stream(response.iter_lines()):
                    yield _parsed_text(Event, data)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def _has_ended(self, job_id: str, after: int) -> bool:
        """Whether there is nothing more to hear of a job after an event."""
        return self.job(job_id).ended and not [event for event in self._stream(job_id, after) if event]

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        return self._request("GET", path, params=given)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise _refusal(response)
        return response

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, httpx.ConnectError):
            remedy = "start one with factor-search serve" if self.is_local else "check --url or FACTOR_SEARCH_URL"
            return UnreachableError(f"no server answers at {self.url} ({one_line(error)}): {remedy}")
        return UnreachableError(f"the connection to {self.url} broke: {one_line(error)}")


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}" + (f"/{rest}" if rest else "")


def _refusal(response: httpx.Response) -> ServiceError:
    """An answer that is no success, as an error with what the server says about it."""
    status = response.status_code
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{response.url} answers {status} without saying why: is it a factor-search server?"
    return BY_STATUS.get(status, ServiceError)(detail, status)


def _parsed(model: type[Value], response: httpx.Response) -> Value:
    return _parsed_text(model, response.text)


def _parsed_text(model: type[Value], text: str) -> Value:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ServiceError(f"the server's answer is no {model.__name__}: {one_line(error)}") from None
