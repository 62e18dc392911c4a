"""What every request passes before it reaches a route or the dashboard."""

import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import SAFE, check_key, check_origin, is_open, is_own
from api.body import Body, too_large
from api.key_ring import KeyRing, WrongKeys
from api.problems import RefusedError, problem_response, refusal_of
from api.settings import Settings
from factor_search.errors import FactorSearchError

LOOPBACK = "127.0.0.1"
SPECIFICATIONS = ("/v1/jobs", "/v1/plans", "/v1/estimate")
"""Where specifications go, which are parsed in threads; the bodies of all other routes of ours are a few words."""
FEW_WORDS_BYTES = 2**14


class Guard:
    """Checks origin, size, key and health; then sends a request to the REST interface or to the dashboard.

    All of it runs on the event loop; keys are read in a thread of their own.
    """

    def __init__(self, app: ASGIApp, settings: Settings, dashboard: ASGIApp | None) -> None:
        self._app = app
        self._settings = settings
        self._dashboard = dashboard
        self._wrong = WrongKeys()
        self._requests = 0
        """Those that may be answered and are being answered; not who is refused, or still sends after its answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = Body(headers, receive, self._largest(scope["path"]), self._settings.body_seconds)
        with contextlib.ExitStack() as place:
            await self._serve(scope, headers, body, body.closing(send, place.close), place)

    async def _serve(self, scope: Scope, headers: Headers, body: Body, send: Send, place: contextlib.ExitStack) -> None:
        to_dashboard = self._dashboard is not None and not is_own(scope["path"])
        receive: Receive = body
        try:
            await self._check(scope, headers, body, to_dashboard)
            self._take_place(scope["path"], place)
            if to_dashboard and not body.complete:
                receive = _again(await body.whole())  # its threads must not wait for a client
        except FactorSearchError as error:
            await _answer(refusal_of(error), scope, body, send)
        except RefusedError as refused:
            await _answer(refused, scope, body, send)
        else:
            if to_dashboard and self._dashboard is not None:
                await self._dashboard(scope, receive, send)
            else:
                await self._app(scope, receive, send)

    def _largest(self, path: str) -> int:
        """Bytes that a body may have."""
        largest = self._settings.largest_body_bytes
        return min(largest, FEW_WORDS_BYTES) if is_own(path) and path not in SPECIFICATIONS else largest

    def _take_place(self, path: str, place: contextlib.ExitStack) -> None:
        """Count a request until its place is closed."""
        if is_open(path):
            return
        if self._requests >= self._settings.most_requests:
            raise RefusedError(
                503, f"{self._settings.most_requests} requests are being answered already", headers={"Retry-After": "1"}
            )
        if not path.endswith("/events"):
            self._requests += 1
            place.callback(self._leave_place)

    def _leave_place(self) -> None:
        self._requests -= 1

    async def _check(self, scope: Scope, headers: Headers, body: Body, to_dashboard: bool) -> None:
        method, path, state = scope["method"], scope["path"], scope["app"].state
        check_origin(headers, method)
        if method not in SAFE and path.startswith("/v1/"):
            state.health.check()
        if body.announced is not None and body.announced > self._largest(path):
            raise too_large(self._largest(path))
        if to_dashboard or is_own(path):
            keys: KeyRing = state.keys
            address = (scope.get("client") or (LOOPBACK, 0))[0]
            loopback = self._settings.loopback
            key = await check_key(keys, self._wrong, headers, method, path, loopback=loopback, address=address)
            scope.setdefault("state", {})["key"] = key
        if to_dashboard and method not in SAFE and "transfer-encoding" in headers:
            raise RefusedError(411, "the request needs a Content-Length")


def _again(body: bytes) -> Receive:
    """Gives a body that was read already."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _answer(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem_response(
        refused.status, refused.detail, scope["path"], headers=refused.headers, faults=refused.faults
    )
    await response(scope, receive, send)
