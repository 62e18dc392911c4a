"""OpenTelemetry traces of jobs, their phases and evaluations, and of requests.

They are sent where the standard variables of the environment say, such as ``OTEL_EXPORTER_OTLP_ENDPOINT``. Without them
nothing is imported, and every function here does nothing.
"""

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factor_search.errors import one_line
from factor_search.search.loop import SearchState
from factor_search.search.selection import JobWatcher
from factor_search.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
REST_SECONDS = 3.0
"""At the end of a process, for what is left to send."""
Attributes = Mapping[str, str | int | float | bool]

logger = logging.getLogger(__name__)
_tracer: "Tracer | None" = None


def set_up_tracing(service: str) -> None:
    """Send traces from now on, if the environment says where to.

    Args:
        service: name of this process in the traces, unless ``OTEL_SERVICE_NAME`` gives another.
    """
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no traces are sent, since a package is missing: pip install 'factor-search[tracing]'")
        return
    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service, "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # in a thread, with a queue that drops
    use(provider.get_tracer("factor-search", __version__))
    _at_exit(provider.shutdown)


def _at_exit(send_rest: Callable[[], None]) -> None:
    """Send what is left when this process ends, for a bounded time; no thread can be started then."""
    ending = threading.Event()

    def wait() -> None:
        ending.wait()
        send_rest()

    def end() -> None:
        ending.set()
        thread.join(REST_SECONDS)

    thread = threading.Thread(target=wait, name="traces", daemon=True)
    thread.start()
    atexit.register(end)


def use(tracer: "Tracer | None") -> None:
    """Make spans with a tracer from now on; None makes none."""
    global _tracer
    _tracer = tracer


class Trace:
    """The spans of one job: itself, and within it its phases and evaluations; may be used in any thread."""

    def __init__(self, name: str, attributes: Attributes) -> None:
        """Begin the span of the job."""
        self._lock = threading.Lock()
        self._job = None if _tracer is None else _tracer.start_span(name, attributes=dict(attributes))
        self._phase: Span | None = None
        self._last = time.time_ns()

    def phase(self, text: str) -> None:
        """End the present phase, and begin another."""
        with self._lock:
            self._end_phase()
            if _tracer is not None and self._job is not None:
                self._phase = _tracer.start_span(text, context=_within(self._job))
            self._last = time.time_ns()

    def evaluation(self, attributes: Mapping[str, Any], began: int | None = None) -> None:
        """Add an evaluation that has ended now, to the present phase.

        Args:
            attributes: of the evaluation; None is left out.
            began: nanoseconds since 1970; None is when the one before has ended.
        """
        with self._lock:
            parent = self._phase or self._job
            began, self._last = self._last if began is None else began, time.time_ns()
            if _tracer is None or parent is None:
                return
            known = {f"factor_search.{key}": value for key, value in attributes.items() if value is not None}
            _tracer.start_span("evaluation", context=_within(parent), start_time=began, attributes=known).end(
                self._last
            )

    def end(self, error: str | None = None) -> None:
        """End the job; the first call counts."""
        with self._lock:
            self._end_phase()
            if self._job is not None and self._job.is_recording():
                if error is not None:
                    from opentelemetry.trace import Status, StatusCode

                    self._job.set_status(Status(StatusCode.ERROR, error))
                self._job.end()

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.end()
            self._phase = None


def _within(span: "Span") -> Any:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


@contextlib.contextmanager
def traced_search(name: str, watcher: JobWatcher) -> Iterator[JobWatcher]:
    """A span for a search in this process; the same callbacks, which make spans for its phases and evaluations."""
    if _tracer is None:
        yield watcher
        return
    trace = Trace(f"search {name}", {"factor_search.name": name})

    def phase(text: str) -> None:
        trace.phase(text)
        watcher.phase(text)

    def candidate(state: SearchState) -> None:
        one = state.evaluations[-1]
        trace.evaluation(
            {
                "part": one.part,
                "number": len(state.evaluations),
                "outcome": str(one.outcome),
                "documents": len(one.losses),
                "loss": one.summary.loss if one.losses else None,
            }
        )
        watcher.candidate(state)

    def scored(part: str, done: int, total: int) -> None:
        trace.evaluation({"part": part, "number": done})
        watcher.scored(part, done, total)

    try:
        yield replace(watcher, phase=phase, candidate=candidate, scored=scored)
    except BaseException as error:
        trace.end(one_line(error))
        raise
    finally:
        trace.end()


def record_request(method: str, route: str, status: int, seconds: float, headers: Mapping[str, str]) -> None:
    """Add a span for a request that was answered now, within the trace that its headers name.

    Args:
        method, route: of the request; the route is a pattern, without ids.
        status: of the answer.
        seconds: that it took.
        headers: with names in lower case.
    """
    if _tracer is None:
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode

    now = time.time_ns()
    span = _tracer.start_span(
        f"{method} {route}",
        context=extract(headers),
        kind=SpanKind.SERVER,
        start_time=now - int(seconds * 1e9),
        attributes={"http.request.method": method, "http.route": route, "http.response.status_code": status},
    )
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
    span.end(now)


def is_tracing() -> bool:
    """Whether spans are made."""
    return _tracer is not None
