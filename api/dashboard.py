"""Optuna's dashboard as an ASGI application, to be mounted last and at "/": its own addresses are absolute."""

from typing import cast

from a2wsgi import WSGIMiddleware
from optuna.storages import get_storage
from optuna_dashboard import wsgi
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from storage.optuna_reading import FewCurvesStorage
from storage.optuna_tables import open_optuna

COMPRESSION_LEVEL = 3
"""1,500 trials are 5.5 MB, and compressed 0.7 MB; a higher level saves little more and takes longer than it saves."""


def dashboard_app(optuna_url: str) -> ASGIApp:
    """The dashboard over Optuna's tables, whose finished trials it keeps in memory.

    Raises:
        DatabaseError: the tables cannot be reached.
    """
    dashboard = WSGIMiddleware(wsgi(get_storage(open_optuna(optuna_url, FewCurvesStorage))))
    return GZipMiddleware(cast(ASGIApp, dashboard), minimum_size=10_000, compresslevel=COMPRESSION_LEVEL)
