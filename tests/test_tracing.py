"""OpenTelemetry traces, collected in memory."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import factor_search as fs
from api.app import create_app
from api.settings import Settings
from bench.stub import stub_spec
from factor_search.errors import DataError
from factor_search.report import tracing
from tests.service import ANYTHING, Service

ROOT = Path(__file__).parents[1]


@pytest.fixture
def spans() -> Iterator[Any]:
    """An exporter that keeps the spans that have ended."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="pip install 'factor-search[tracing]'")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider.get_tracer("test"))
    yield exporter
    tracing.use(None)
    provider.shutdown()


def children(spans: Any, parent: Any) -> list[Any]:
    found = [one for one in spans.get_finished_spans() if one.parent and one.parent.span_id == parent.context.span_id]
    return sorted(found, key=lambda one: one.start_time)


def root(spans: Any) -> Any:
    (only,) = [one for one in spans.get_finished_spans() if one.parent is None]
    return only


def check_nested(spans: Any) -> None:
    """Every span lies within its parent, and all are of one trace."""
    known = {one.context.span_id: one for one in spans.get_finished_spans()}
    assert len({one.context.trace_id for one in known.values()}) == 1
    for one in known.values():
        assert one.start_time <= one.end_time
        if one.parent is not None:
            assert known[one.parent.span_id].start_time <= one.end_time


def test_a_search_in_this_process(spans: Any, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    model = {"id": str(checkpoint), "device": "cpu"}
    result = fs.search_factors(model, data, 128, out=tmp_path / "out", budget=10, strategy="random")
    job = root(spans)
    assert job.name == "search search"
    phases = {one.name: one for one in children(spans, job)}
    assert {"reading documents", "searching", "measuring on held-out documents"} <= set(phases)
    searching = children(spans, phases["searching"])
    assert len(searching) == result.report["search"]["evaluations"]
    assert {one.attributes["factor_search.outcome"] for one in searching} == {"ok"}
    assert searching[0].attributes["factor_search.part"] == "search"
    held_out = children(spans, phases["measuring on held-out documents"])
    assert len(held_out) == len(result.report["results"])
    check_nested(spans)


def test_a_search_that_fails_says_why(spans: Any, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fs.search_factors(str(checkpoint), str(tmp_path / "none" / "*"), 128, out=tmp_path / "out")
    assert root(spans).status.status_code.name == "ERROR"
    assert "none" in root(spans).status.description


def test_a_job_of_a_service(spans: Any, tmp_path: Path) -> None:
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}")
    try:
        service.start(workers=2)
        job, _ = service.jobs.submit(stub_spec(budget=30))
        assert service.wait(job.id) == "finished"
    finally:
        service.stop()
        service.database.close()
    span = root(spans)
    assert span.attributes["factor_search.id"] == job.id
    phases = {one.name: one for one in children(spans, span)}
    evaluations = children(spans, phases["searching"])
    assert len(evaluations) == 30
    assert {one.attributes["factor_search.outcome"] for one in evaluations} == {"ok"}
    assert all(one.attributes["factor_search.worker"] for one in evaluations)
    check_nested(spans)


def test_requests_continue_the_trace_of_their_sender(spans: Any, tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'jobs.db'}", policy=ANYTHING, loopback=True)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with TestClient(create_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        client.get("/v1/jobs/000000000000", headers={"traceparent": f"00-{trace}-{parent}-01"})
        client.get("/healthz")
    first, second = spans.get_finished_spans()
    assert (first.name, first.kind.name) == ("GET /v1/jobs/{job_id}", "SERVER")
    assert first.attributes["http.response.status_code"] == 404
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (trace, parent)
    assert (second.name, second.parent) == ("GET /healthz", None)


def loaded(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=True, timeout=100
    )


SET_UP = "import sys; from factor_search.report import tracing; tracing.set_up_tracing('a'); "
IS_LOADED = "print('opentelemetry' in sys.modules, tracing.is_tracing())"


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}]
)
def test_nothing_is_imported_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert loaded(SET_UP + IS_LOADED, **environment).stdout == "False False\n"


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'factor-search[tracing]'")
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    loaded(SET_UP + "tracing.Trace('a job', {}).end()", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="mine")
    server.shutdown()
    server.server_close()
    sent = ExportTraceServiceRequest.FromString(bodies[0]).resource_spans[0]
    assert sent.scope_spans[0].spans[0].name == "a job"
    assert ("service.name", "mine") in {(one.key, one.value.string_value) for one in sent.resource.attributes}


def test_a_collector_that_does_not_answer_keeps_no_process(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'factor-search[tracing]'")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = SET_UP + "import time; tracing.Trace('a job', {}).end(); print(time.time())"
        ended_at = float(loaded(code, OTEL_EXPORTER_OTLP_ENDPOINT=url).stdout)
    assert time.time() - ended_at < tracing.REST_SECONDS + 5


def test_a_missing_package_is_one_warning() -> None:
    block = "import sys; sys.modules['opentelemetry.sdk.trace'] = None; "
    told = loaded(block + SET_UP + "print(tracing.is_tracing())", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert told.stdout == "False\n"
    assert told.stderr.count("factor-search[tracing]") == 1
