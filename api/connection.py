"""A connection to one server: requests, streams of events, and what their failures mean."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from api.client_errors import BY_STATUS, ServiceError, UnreachableError
from api.event_stream import read_stream
from api.schemas import Event
from factor_search.errors import one_line

DEFAULT_URL = "http://127.0.0.1:8400"
TIMEOUT_SECONDS = 30.0
CHANGE_SECONDS = 100.0
"""A server answers a POST or DELETE within 95 seconds, or refuses it: 60 to check it, 35 to write it."""
STREAM_SILENCE_SECONDS = 60.0
"""The server sends something at least every 15 seconds; a longer silence is a broken connection."""
ATTEMPTS = 3
LONGEST_WAIT_SECONDS = 5.0
PAGE_LENGTH = 100

Value = TypeVar("Value", bound=BaseModel)


class Connection:
    """Talks to one server; safe to use from several threads."""

    def __init__(self, url: str | None, key: str | None, retry_seconds: float) -> None:
        """Prepare; nothing is sent yet. For the arguments see :class:`api.client.Client`.

        Raises:
            ServiceError: the URL or the key cannot be one.
        """
        self.url = (url or os.environ.get("FACTOR_SEARCH_URL") or DEFAULT_URL).rstrip("/")
        key = key or os.environ.get("FACTOR_SEARCH_KEY")
        self._retry_seconds = retry_seconds
        try:
            parsed = urlsplit(self.url)
            usable = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
        except ValueError as error:
            raise ServiceError(f"{self.url!r} is not a URL: {one_line(error)}") from None
        if not usable:
            raise ServiceError(f"{self.url!r} is not the URL of a server, such as {DEFAULT_URL}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ServiceError(
                "the key contains characters that keys never have: set FACTOR_SEARCH_KEY to what keys create printed"
            )
        self.is_local = parsed.hostname in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_SECONDS,
            trust_env=not self.is_local,  # a proxy cannot reach our own loopback
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def submit(self, path: str, document: Mapping[str, Any], idempotency_key: str | None) -> httpx.Response:
        """Post what must be made only once, even if it is sent again after a broken connection."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.request("POST", path, json=dict(document), headers=headers)
            except UnreachableError as error:
                if attempt == ATTEMPTS or isinstance(error.__cause__, httpx.ConnectError):
                    raise
                time.sleep(attempt)
        raise AssertionError("not reached")

    def follow(
        self,
        path: str,
        after: int,
        *,
        is_last: Callable[[Event], bool],
        is_over: Callable[[], bool],
        on_interruption: Callable[[UnreachableError], None] | None,
    ) -> Iterator[Event]:
        """Events of a stream after a number, each once, in order, over as many connections as it takes.

        Args:
            path: of the stream.
            after: number of the last event not wanted.
            is_last: whether no event comes after one.
            is_over: whether nothing more will happen.
            on_interruption: called for each broken connection.
        """
        lost_at: float | None = None
        answered = False
        while True:
            try:
                for event in self.stream(path, after):
                    answered, lost_at = True, None
                    if event is None:
                        continue
                    after = event.number
                    yield event
                    if is_last(event):
                        return
                if is_over() and not [event for event in self.stream(path, after) if event]:
                    return
                time.sleep(1)  # the server is about to go: its successor sends the rest
            except UnreachableError as error:
                lost_at = lost_at or time.monotonic()
                away = time.monotonic() - lost_at
                if not answered or away > self._retry_seconds:
                    raise
                if on_interruption is not None:
                    on_interruption(error)
                time.sleep(min(1.0 + away / 5, LONGEST_WAIT_SECONDS))

    def stream(self, path: str, after: int) -> Iterator[Event | None]:
        """The events of one connection: None when it is made, then each event."""
        silence = httpx.Timeout(TIMEOUT_SECONDS, read=STREAM_SILENCE_SECONDS)
        headers = {"Last-Event-ID": str(after)}
        try:
            with self._http.stream("GET", path, headers=headers, timeout=silence) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield None
                for data in read_stream(response.iter_lines()):
                    yield parsed_text(Event, data)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        """Ask for something; of the query, what is None is left out."""
        given = {key: value for key, value in (query or {}).items() if value is not None}
        return self.request("GET", path, params=given)

    def pages(
        self,
        path: str,
        page: type[Value],
        following: Callable[[Value], str | None],
        *,
        state: str | None,
        limit: int | None,
    ) -> Iterator[Value]:
        """Pages of a list, each asked for when it is wanted.

        Args:
            path: of the list.
            page: what each is.
            following: the cursor of the one after a page; None after the last.
            state: of the items wanted; None wants all.
            limit: how many items are wanted at most, of which a page need not have more; None wants all.
        """
        cursor: str | None = None
        length = PAGE_LENGTH if limit is None else min(limit, PAGE_LENGTH)
        while True:
            part = parsed(page, self.get(path, {"state": state, "cursor": cursor, "limit": length}))
            yield part
            if (cursor := following(part)) is None:
                return

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request.

        Raises:
            UnreachableError: no server answers, or the connection broke.
            ServiceError: it refuses.
        """
        seconds = TIMEOUT_SECONDS if method == "GET" else CHANGE_SECONDS
        try:
            response = self._http.request(method, path, timeout=httpx.Timeout(TIMEOUT_SECONDS, read=seconds), **options)
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


def _refusal(response: httpx.Response) -> ServiceError:
    """An unsuccessful answer as an error, with the server's explanation."""
    status = response.status_code
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{response.url} answers {status} without saying why: is it a factor-search server?"
    return BY_STATUS.get(status, ServiceError)(detail, status)


def parsed(model: type[Value], response: httpx.Response) -> Value:
    """An answer as a value."""
    return parsed_text(model, response.text)


def parsed_text(model: type[Value], text: str) -> Value:
    """A JSON text as a value.

    Raises:
        ServiceError: it is not one.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ServiceError(f"the server's answer is not a {model.__name__}: {one_line(error)}") from None
