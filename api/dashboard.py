"""Optuna's dashboard as an ASGI application, to be mounted last and at "/": its own addresses are absolute."""

import re
from typing import cast

from a2wsgi import WSGIMiddleware
from optuna.storages import get_storage
from optuna_dashboard import wsgi
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.dashboard.optuna_reading import FewCurvesStorage
from storage.dashboard.optuna_tables import open_optuna

COMPRESSION_LEVEL = 3
"""1,500 trials are 4 MB, and compressed 0.5 MB; a higher level saves little more and takes longer than it saves."""
STUDY_PAGE = re.compile(r"/dashboard/studies/(\d+)(/\w*)?")


def dashboard_app(optuna_url: str) -> ASGIApp:
    """The dashboard over Optuna's tables, whose finished trials it keeps in memory.

    Raises:
        DatabaseError: the tables cannot be reached.
    """
    dashboard = WSGIMiddleware(wsgi(get_storage(open_optuna(optuna_url, FewCurvesStorage))))
    compressed = GZipMiddleware(cast(ASGIApp, dashboard), minimum_size=10_000, compresslevel=COMPRESSION_LEVEL)
    return _TrialsAhead(compressed)


class _TrialsAhead:
    """Has the browser fetch a study's trials while it is still busy with the page's script, which takes a second."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = STUDY_PAGE.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if page is None:
            await self._app(scope, receive, send)
            return
        ahead = f"</api/studies/{page[1]}?after=0>; rel=preload; as=fetch; crossorigin=anonymous"

        async def with_link(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("link", ahead)
            await send(message)

        await self._app(scope, receive, with_link)
