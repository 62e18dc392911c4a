"""What every request passes before it reaches a route or the dashboard."""

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import SAFE, check_key, check_origin, is_own
from api.problems import RefusedError, problem_response, refusal_of
from api.settings import Settings
from factor_search.errors import FactorSearchError
from storage.keys import KeyStore

DRAINED_BYTES = 32 * 2**20
"""So much of a body that is too large is read and forgotten, so that its sender gets to see the answer."""


class Guard:
    """Checks host, origin, size and key; then sends a request to the REST interface or to the dashboard."""

    def __init__(self, app: ASGIApp, settings: Settings, dashboard: ASGIApp | None) -> None:
        self._app = app
        self._settings = settings
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        to_dashboard = self._dashboard is not None and not is_own(scope["path"])
        try:
            await self._check(scope, receive, to_dashboard)
        except FactorSearchError as error:
            await _answer(refusal_of(error), scope, receive, send)
        except RefusedError as refused:
            await _answer(refused, scope, receive, send)
        else:
            if to_dashboard and self._dashboard is not None:
                await self._dashboard(scope, receive, send)
            else:
                await self._app(scope, _counted(receive, self._settings.largest_body_bytes), send)

    async def _check(self, scope: Scope, receive: Receive, to_dashboard: bool) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        check_origin(headers, method, loopback=self._settings.loopback)
        if to_dashboard or is_own(path):
            keys = KeyStore(scope["app"].state.database)
            key = await anyio.to_thread.run_sync(
                lambda: check_key(keys, headers, method, path, loopback=self._settings.loopback)
            )
            scope.setdefault("state", {})["key"] = key
        length = headers.get("content-length")
        if length is not None and length.isascii() and length.isdigit():
            if int(length) > self._settings.largest_body_bytes:
                await _drain(receive)
                raise too_large(self._settings.largest_body_bytes)
        elif to_dashboard and method not in SAFE and "transfer-encoding" in headers:
            raise RefusedError(411, "the request needs a Content-Length")


def too_large(largest: int) -> RefusedError:
    """A body is beyond the limit."""
    return RefusedError(413, f"the body is larger than {largest:,} bytes: a specification is a small JSON object")


def _counted(receive: Receive, largest: int) -> Receive:
    """Refuses a body without Content-Length as soon as it is too large."""
    total = 0

    async def receive_counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > largest:
            if message.get("more_body", False):
                await _drain(receive)
            raise too_large(largest)
        return message

    return receive_counted


async def _drain(receive: Receive) -> None:
    drained = 0
    while drained < DRAINED_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        drained += len(message.get("body", b""))


async def _answer(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem_response(
        refused.status, refused.detail, scope["path"], headers=refused.headers, faults=refused.faults
    )
    await response(scope, receive, send)
