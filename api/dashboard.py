"""Optuna's dashboard as an ASGI application, to be mounted last and at "/": its own addresses are absolute."""

import asyncio
import gzip
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem_response, refusal_of
from storage.errors import DatabaseError

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
COMPRESSED_BYTES = 10_000
"""Shorter answers are sent as they are."""
COMPRESSION_LEVEL = 3
"""1,500 trials are 4 MB, and compressed 0.5 MB; a higher level saves little more and takes longer than it saves."""
STUDY_PAGE = re.compile(r"/dashboard/studies/(\d+)(/\w*)?")


class Dashboard:
    """The dashboard over Optuna's tables, whose finished trials it keeps in memory.

    Optuna takes seconds to import, so it is imported when :meth:`open` is called or with the first request.
    """

    def __init__(self, optuna_url: str) -> None:
        self._optuna_url = optuna_url
        self._lock = threading.Lock()
        self._app: ASGIApp | None = None
        self._opening: asyncio.Task[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        try:
            app = self._app if self._app is not None else await self._opened_once()
        except DatabaseError as error:
            refused = refusal_of(error)
            answer = problem_response(refused.status, refused.detail, scope["path"], headers=refused.headers)
            await answer(scope, receive, send)
            return
        page = STUDY_PAGE.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if page is None:
            await app(scope, receive, send)
            return
        # the browser fetches the trials while it is still busy with the page's script, which takes a second
        ahead = f"</api/studies/{page[1]}?after=0>; rel=preload; as=fetch; crossorigin=anonymous"

        async def with_link(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("link", ahead)
            await send(message)

        await app(scope, receive, with_link)

    async def _opened_once(self) -> ASGIApp:
        """What :meth:`open` gives, called once for all requests that wait, in a thread that no other request needs."""
        if self._opening is None or self._opening.done():
            opening = anyio.to_thread.run_sync(self.open, limiter=CapacityLimiter(1))
            self._opening = asyncio.create_task(opening)
        return await asyncio.shield(self._opening)

    def open(self) -> ASGIApp:
        """Open Optuna's tables, unless they are open.

        Raises:
            DatabaseError: they cannot be reached.
        """
        with self._lock:
            if self._app is None:
                self._app = _opened(self._optuna_url)
            return self._app


def _opened(optuna_url: str) -> ASGIApp:
    from a2wsgi import WSGIMiddleware
    from optuna.storages import get_storage
    from optuna_dashboard import wsgi

    from storage.dashboard.optuna_reading import FewCurvesStorage
    from storage.dashboard.optuna_tables import open_optuna

    dashboard = wsgi(get_storage(open_optuna(optuna_url, FewCurvesStorage)))
    return cast(ASGIApp, WSGIMiddleware(cast(Any, _compressed(dashboard))))


def _compressed(app: WsgiApp) -> WsgiApp:
    """Compresses large answers in the thread that makes them: the event loop would keep everybody waiting."""

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # the dashboard expects that browsers send it
        begun: list[Any] = []
        parts = app(environ, lambda status, headers, failure=None: begun.append((status, headers, failure)))
        try:
            body = b"".join(parts)
        finally:
            getattr(parts, "close", lambda: None)()
        status, headers, failure = begun[-1]
        names = {name.lower() for name, _ in headers}
        accepted = "gzip" in environ["HTTP_ACCEPT_ENCODING"] and environ["REQUEST_METHOD"] == "GET"
        if accepted and len(body) >= COMPRESSED_BYTES and "content-encoding" not in names:
            body = gzip.compress(body, COMPRESSION_LEVEL, mtime=0)
            others = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers = [*others, ("Content-Encoding", "gzip"), ("Content-Length", str(len(body)))]
            headers.append(("Vary", "Accept-Encoding"))
        start_response(status, headers, failure)
        return [body]

    return call
