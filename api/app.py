"""The server's application: routes, errors, guard, metrics, and the dashboard behind them."""

import contextlib
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from api import openapi, problems
from api.events import EventStreams
from api.guard import Guard
from api.health import HealthWatch
from api.key_ring import KeyRing
from api.metrics import Measured, RecordMetrics, RequestMetrics
from api.records import Records
from api.retention import Ageing
from api.routes import comparison, course, description, estimate, health, jobs, page, plans, storage
from api.safe_pages import SafePages
from api.settings import Settings
from api.slow_work import SlowWork
from factor_search.version import __version__
from storage.dashboard.studies import StudyPages
from storage.database import Database

READS_AT_ONCE = 8
"""Threads for requests that only read records: each takes milliseconds, and many would keep the event loop waiting."""
CHECK_SECONDS, WRITE_SECONDS = 60.0, 35.0
"""The second is more than a transaction may wait for the lock of the database. Clients wait longer than for both."""


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
        with Database(settings.database_url) as database, HealthWatch(database, settings) as watch:
            anyio.to_thread.current_default_thread_limiter().total_tokens = READS_AT_ONCE
            app.state.database = database
            app.state.health = watch
            app.state.keys = KeyRing(database)
            app.state.checks = SlowWork("checks of submissions", threads=4, queue=60, seconds=CHECK_SECONDS)
            app.state.reports = SlowWork("reports", threads=4, queue=settings.most_requests, seconds=CHECK_SECONDS)
            app.state.estimates = SlowWork("estimates", threads=2, queue=20, seconds=CHECK_SECONDS)
            app.state.prunes = SlowWork("deletions by age", threads=1, queue=0, seconds=CHECK_SECONDS)
            app.state.writes = SlowWork("changes of records", threads=4, queue=200, seconds=WRITE_SECONDS)
            app.state.records = Records.of(database, settings)
            app.state.streams = EventStreams(database, settings)
            app.state.studies = StudyPages(settings.optuna_url if dashboard else None)
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
                app.state.studies.close()

    app = FastAPI(
        title="factor-search", version=__version__, lifespan=lifespan, openapi_url=None, redirect_slashes=False
    )
    app.state.settings = settings
    problems.install(app)
    for module in (jobs, course, plans, comparison, estimate, storage, health, description, page):
        app.include_router(module.router)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, settings=settings, dashboard=dashboard)
    app.add_middleware(SafePages)
    app.add_middleware(Measured, metrics=RequestMetrics(registry))
    return app
