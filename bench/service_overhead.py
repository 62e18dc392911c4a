"""A search through REST, Ray and the database, compared with the same search in one process on the shipped model.

The benchmark compares wall time from the first candidate to the last figure. The time with start (Python, torch, Ray,
loading the model) is printed as well. Runs alternate, in alternating order.

    python -m bench.service_overhead [--candidates 100] [--pairs 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from api.cli.demo import specification
from api.cli.private_server import server
from api.client import Client

LIMIT = 1.05


def in_one_process(spec: Path, out: Path, cache: Path) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the search, seconds with start, and the factors."""
    command = [sys.executable, "-m", "api", "run", str(spec), "--out", str(out)]
    start = time.monotonic()
    environment = os.environ | {"FACTOR_SEARCH_CACHE": str(cache)}
    searching: float | None = None
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if searching is None and line.startswith("searching"):
                searching = time.monotonic()
    end = time.monotonic()
    if run.returncode != 0 or searching is None:
        raise RuntimeError(f"the search in one process failed with status {run.returncode}")
    return end - searching, end - start, load(out / "factors.json")


def through_the_service(client: Client, document: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """The same through a running server, whose events say when the search started and ended."""
    start = time.monotonic()
    job = client.jobs.submit(document)
    began = ended = None
    for event in client.jobs.events(job.id):
        if event.kind == "phase" and event.data["phase"] == "searching":
            began = event.at
        if event.kind == "failed":
            raise RuntimeError(str(event.data))
        if event.kind == "finished":
            ended = event.at
    assert began is not None
    assert ended is not None
    return (ended - began).total_seconds(), time.monotonic() - start, client.jobs.factors(job.id)


def load(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FACTOR_SEARCH_CACHE"] = str(folder / "cache")
        for pair in range(arguments.pairs):
            document = specification(arguments.candidates) | {"seed": pair, "name": f"pair {pair}"}
            spec = folder / f"{pair}.json"
            spec.write_text(json.dumps(document))
            seconds: dict[str, float] = {}
            found: dict[str, Any] = {}
            for which in (("service", "process"), ("process", "service"))[pair % 2]:
                if which == "process":
                    out = folder / f"run-{pair}"
                    seconds[which], whole, found[which] = in_one_process(spec, out, folder / "cache")
                else:
                    place = folder / f"service-{pair}"
                    place.mkdir()
                    with server(place) as url, Client(url) as client:  # Ray and the model are started for each pair
                        seconds[which], whole, found[which] = through_the_service(client, document)
                print(f"  {which}: search {seconds[which]:.2f} s, with start {whole:.2f} s", flush=True)
            same = found["service"]["rescale_factors"] == found["process"]["rescale_factors"]
            same &= found["service"]["perplexity"] == found["process"]["perplexity"]
            ratios.append(seconds["service"] / seconds["process"])
            print(
                f"pair {pair}: ratio {ratios[-1]:.3f}, {'the same' if same else 'DIFFERENT'} factors and perplexities"
            )
            if not same:
                return 1
    median = statistics.median(ratios)
    print(f"median ratio {median:.3f} (limit {LIMIT})")
    return int(median > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
