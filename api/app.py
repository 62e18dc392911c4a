"""The server's application: routes, errors, guard, metrics, and the dashboard behind them."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from api import openapi, problems
from api.events import EventStreams
from api.guard import Guard
from api.metrics import Measured, RecordMetrics, RequestMetrics
from api.records import Records
from api.retention import Ageing
from api.routes import health, jobs, plans, storage
from api.settings import Settings
from factor_search.version import __version__
from storage.database import Database


def create_app(settings: Settings, dashboard: ASGIApp | None = None) -> FastAPI:
    """The application of one server.

    Its state has ``streams`` (see :class:`api.events.EventStreams`) as soon as it has started.

    Args:
        settings: what the operator chose.
        dashboard: serves every path that is none of ours, and is guarded: reading needs the scope read, anything else
            an admin key.
    """
    registry = CollectorRegistry()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Database(settings.database_url) as database:
            app.state.database = database
            app.state.records = Records.of(database, settings)
            app.state.streams = EventStreams(database, settings)
            app.state.registry = registry
            records = RecordMetrics(database, settings.coordinator_silent_seconds)
            registry.register(records)
            keep_days = settings.keep_days
            ageing = None if keep_days is None else Ageing(app.state.records, keep_days)
            try:
                yield
            finally:
                if ageing is not None:
                    ageing.stop()
                registry.unregister(records)

    app = FastAPI(title="factor-search", version=__version__, lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    problems.install(app)
    for module in (jobs, plans, storage, health):
        app.include_router(module.router)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, settings=settings, dashboard=dashboard)
    app.add_middleware(Measured, metrics=RequestMetrics(registry))
    return app
