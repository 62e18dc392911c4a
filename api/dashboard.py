"""Optuna's dashboard as an ASGI application, to be mounted last and at "/": its own addresses are absolute."""

import re
import threading
from typing import cast

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        app = self._app if self._app is not None else await anyio.to_thread.run_sync(self.open)
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

    dashboard = WSGIMiddleware(wsgi(get_storage(open_optuna(optuna_url, FewCurvesStorage))))
    return GZipMiddleware(cast(ASGIApp, dashboard), minimum_size=10_000, compresslevel=COMPRESSION_LEVEL)
