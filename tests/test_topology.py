"""The whole service as processes, as containers run it: server with coordinator, PostgreSQL, Ray head and worker."""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.client import Client
from bench.ray_cluster import RayCluster, kill_node
from factor_search.factors_file import FactorsFile, read_factors
from factor_search.job import run_job
from factor_search.report.document import build_factors_file
from factor_search.spec import parse_spec

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(*arguments: str, database: str, folder: Path) -> Iterator[str]:
    """A server as an operator starts it; gives its address."""
    command = [sys.executable, "-m", "api", "serve", "--port", "0", "--database", database, "--root", "/", *arguments]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ.copy())
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready.startswith("serving at "), (folder / "server.log").read_text()
        yield ready.split()[2]
    finally:
        process.terminate()
        assert process.wait(30) == 0, (folder / "server.log").read_text()
        process.stdout.close()


def specification(checkpoint: Path, texts: Path, candidates: int, **changes: Any) -> dict[str, Any]:
    documents = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    return {
        "model": {"id": str(checkpoint), "device": "cpu"},
        "data": {"files": [str(texts / "*.txt")], **documents},
        "target_length": 128,
        "budget": candidates,
    } | changes


def reference(document: dict[str, Any], folder: Path) -> FactorsFile:
    return build_factors_file(run_job(parse_spec(document), folder))


def test_a_job_runs_across_two_nodes_of_which_one_stops(
    postgresql_database: str, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    document = specification(checkpoint, texts, 300, resources={"workers": 2})
    with RayCluster(cpus=1) as cluster:
        node = cluster.add_node(cpus=1)
        address = ("--ray-address", cluster.address)
        with (
            serving(*address, database=postgresql_database, folder=tmp_path) as url,
            Client(url) as client,
        ):
            job = client.jobs.submit(document)
            until = time.monotonic() + 90
            while len(workers := {item.worker for item in client.jobs.evaluations(job.id) if item.worker}) < 2:
                assert time.monotonic() < until, client.jobs.get(job.id)
                time.sleep(0.2)
            kill_node(node)
            events = list(client.jobs.events(job.id))
            assert events[-1].kind == "finished"
            kinds = Counter(event.kind for event in events)
            assert kinds["worker_lost"] >= 1
            assert kinds["claimed"] == 1
            rows = list(client.jobs.evaluations(job.id))
            assert [row.number for row in rows] == list(range(len(rows)))
            assert {row.outcome for row in rows} == {"ok", "pruned"}
            assert workers <= {row.worker for row in rows}
            found = client.jobs.factors(job.id)
            assert client.jobs.report(job.id)["status"] == "finished"
            assert "<html" in client.jobs.report_html(job.id)
            trials = httpx2.get(f"{url}/api/studies/1?after=0").json()["trials"]
            shown = {"ok": "Complete", "pruned": "Pruned"}
            assert [trial["state"] for trial in trials] == [shown[row.outcome] for row in rows]
            (tmp_path / "factors.json").write_text(httpx2.get(f"{url}/v1/jobs/{job.id}/factors").text)
    expected = reference(document, tmp_path / "reference")
    assert found["rescale_factors"] == list(expected.rescale_factors)
    assert found["perplexity"] == expected.as_json()["perplexity"]
    assert read_factors(tmp_path / "factors.json").factors == expected.factors  # the checksum holds
