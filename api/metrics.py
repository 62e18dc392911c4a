"""Prometheus metrics: of the requests to this server, and of the jobs in its database."""

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import is_own
from factor_search.report.tracing import is_tracing, record_request
from storage.coordinators import CoordinatorStore
from storage.database import Database
from storage.errors import DatabaseError
from storage.evaluations import EvaluationStore
from storage.jobs import JobStore
from storage.plans import PlanStore
from storage.states import JobState, PlanState

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class RequestMetrics:
    """Counts of requests and seconds until their answers begin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self._requests = Counter("factor_search_http_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "factor_search_http_request_seconds", "Until the answer began.", ("method", "route"), registry=registry
        )

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request; paths and methods that nobody serves are counted as one."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            route = "unmatched" if is_own(scope["path"]) or status == 404 else "dashboard"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        if is_tracing():
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            record_request(method, route, status, seconds, headers)


class Measured:
    """Outermost of all middleware: sees every answer."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answered = False

        async def send_measured(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._metrics.record(scope, message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_measured)
        except Exception:
            if not answered:
                self._metrics.record(scope, 500, time.perf_counter() - started)
            raise


class RecordMetrics(Collector):
    """What the database says, read when it is asked for, so that all servers of one database agree."""

    def __init__(self, database: Database, silent_seconds: float) -> None:
        self._jobs = JobStore(database)
        self._plans = PlanStore(database)
        self._evaluations = EvaluationStore(database)
        self._coordinators = CoordinatorStore(database)
        self._silent_seconds = silent_seconds

    def collect(self) -> Iterator[Metric]:
        """All of them; only that the database cannot be reached, if so."""
        reachable = GaugeMetricFamily("factor_search_database_reachable", "Whether the database answers.")
        try:
            families = [*self._job_families(), *self._coordinator_families()]
        except DatabaseError:
            families = []
        reachable.add_metric([], 1.0 if families else 0.0)
        yield reachable
        yield from families

    def _job_families(self) -> list[Metric]:
        jobs = _by_state("factor_search_jobs", "Jobs by state.", JobState, self._jobs.count_by_state())
        plans = _by_state("factor_search_plans", "Plans by state.", PlanState, self._plans.count_by_state())
        evaluations = CounterMetricFamily("factor_search_evaluations", "Stored evaluations.", labels=["outcome"])
        seconds = CounterMetricFamily("factor_search_evaluation_seconds", "Spent on them.", labels=["outcome"])
        for outcome, (count, spent) in self._evaluations.totals().items():
            evaluations.add_metric([outcome], count)
            seconds.add_metric([outcome], spent)
        return [jobs, plans, evaluations, seconds, *self._cost_families()]

    def _cost_families(self) -> list[Metric]:
        """By kind of stage: with a label for each job, series would grow without bound."""
        tokens = CounterMetricFamily("factor_search_tokens", "Scored or read by devices for jobs.", labels=["kind"])
        seconds = CounterMetricFamily("factor_search_device_seconds", "Computed by devices for jobs.", labels=["kind"])
        for kind, spent in self._jobs.spent_by_kind().items():
            tokens.add_metric([kind], spent.tokens)
            seconds.add_metric([kind], spent.device_seconds)
        return [tokens, seconds]

    def _coordinator_families(self) -> list[Metric]:
        alive = [known for known in self._coordinators.list() if known.silent_seconds < self._silent_seconds]
        coordinators = GaugeMetricFamily("factor_search_coordinators", "Coordinators alive.", value=len(alive))
        workers = GaugeMetricFamily("factor_search_workers", "Workers of live coordinators.", labels=["state"])
        for state in ("alive", "busy"):
            numbers = (known.capacity.get(state, 0) for known in alive)
            workers.add_metric([state], sum(number for number in numbers if isinstance(number, int | float)))
        return [coordinators, workers]


def _by_state(name: str, text: str, states: type[StrEnum], counts: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], counts.get(state, 0))
    return family
