"""Optuna's dashboard as an ASGI application, to be mounted last and at "/": its own addresses are absolute."""

from a2wsgi import WSGIMiddleware
from optuna.storages import get_storage
from optuna_dashboard import wsgi

from storage.optuna_tables import open_optuna


def dashboard_app(optuna_url: str) -> WSGIMiddleware:
    """The dashboard over Optuna's tables, whose finished trials it keeps in memory.

    Raises:
        DatabaseError: the tables cannot be reached.
    """
    return WSGIMiddleware(wsgi(get_storage(open_optuna(optuna_url))))
