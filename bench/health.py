"""How soon a server says that it is well while it is attacked: ``python -m bench.health --help``.

A real ``factor-search serve`` on loopback is attacked in one way after the other, by other processes. All the while
another process asks for ``/healthz`` and ``/readyz``, each time over a new connection. The exit status is 1 if an
answer of ``/healthz`` is missing, its median takes longer than 100 ms, or its worst longer than 1 s.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import secrets
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx

MEDIAN_LIMIT, WORST_LIMIT = 0.1, 1.0
PAUSE_SECONDS = 0.05
JSON = {"Content-Type": "application/json"}
COMMIT = "c0" * 20
SPEC: dict[str, Any] = {
    "model": {"id": "x/y", "revision": COMMIT},
    "data": {"dataset": "x/y", "revision": COMMIT},
    "target_length": 4096,
}
"""Of commits, so that no hub is asked for them."""


def address_of(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def repeatedly(times: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something in so many threads, again and again, whatever comes of it."""

    def run() -> None:
        while True:
            with contextlib.suppress(Exception):
                act()

    for _ in range(times):
        threading.Thread(target=run, daemon=True).start()
    while True:
        yield
        time.sleep(0.1)


def post(url: str, spec: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/jobs", json=spec, headers=headers, timeout=60)


def nothing(url: str, folder: Path) -> Iterator[None]:
    """No attack."""
    while True:
        yield


def locked_database(url: str, folder: Path) -> Iterator[None]:
    """Another program holds the write lock, and 60 clients submit."""
    holder = sqlite3.connect(folder / "jobs.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    return repeatedly(60, lambda: post(url, SPEC))


def deep_globs(url: str, folder: Path) -> Iterator[None]:
    """41 clients submit patterns over a deep and wide tree of folders."""
    for one in range(12):
        for two in range(12):
            (folder / "tree" / str(one) / str(two) / "a" / "b" / "c" / "d" / "e").mkdir(parents=True, exist_ok=True)
    spec = SPEC | {
        "model": str(folder / "model"),
        "data": [str(folder / "tree" / "**" / "**" / "**" / "**" / "*.none")],
    }
    return repeatedly(41, lambda: post(url, spec))


def absurd_configurations(url: str, folder: Path) -> Iterator[None]:
    """20 clients submit models whose configurations are absurd."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 2**40, "hidden_size": 2**40}
    (model / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 2048, "num_hidden_layers": 10**9})
    )
    (folder / "text.txt").write_text("words " * 1000)
    spec = SPEC | {"model": str(model), "data": [str(folder / "text.txt")]}
    return repeatedly(20, lambda: post(url, spec))


def absurd_bodies(url: str, folder: Path) -> Iterator[None]:
    """20 clients submit documents of up to 1 MB: keys given twice, nesting, and as many values as are looked at."""
    keys = ",".join(f'"k{number}":1' for number in range(70_000))
    bodies = [f"{{{keys},{keys[:200_000].rpartition(',')[0]}}}".encode()[: 2**20], f"{{{keys}}}".encode(), b"[" * 2**20]
    bodies += [json.dumps(SPEC | {"data": [1] * 19_000}).encode(), f"{{{keys[:190_000].rpartition(',')[0]}}}".encode()]

    def submit() -> None:
        httpx.post(f"{url}/v1/jobs", content=secrets.choice(bodies), headers=JSON, timeout=60)

    return repeatedly(20, submit)


def slow_bodies(url: str, folder: Path) -> Iterator[None]:
    """500 connections send their request one byte at a time."""
    return dripping(url, b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90000\r\n", 500)


def slow_heads(url: str, folder: Path) -> Iterator[None]:
    """500 connections send headers without end, one byte at a time."""
    return dripping(url, b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Header: ", 500, end=b"")


def dripping(
    url: str, head: bytes, number: int, end: bytes = b"Content-Type: application/json\r\n\r\n"
) -> Iterator[None]:
    def opened() -> socket.socket:
        connection = socket.create_connection(address_of(url), timeout=5)
        connection.sendall(head + end)
        return connection

    connections = [opened() for _ in range(number)]
    while True:
        for place, connection in enumerate(connections):
            try:
                connection.sendall(b"x")
            except OSError:
                with contextlib.suppress(OSError):
                    connections[place] = opened()
        yield
        time.sleep(0.2)


def oversized_bodies(url: str, folder: Path) -> Iterator[None]:
    """20 clients send a gigabyte each."""
    block = b"x" * 2**20

    def send() -> None:
        with socket.create_connection(address_of(url), timeout=10) as connection:
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n")
            for _ in range(1000):
                connection.sendall(block)

    return repeatedly(20, send)


def wrong_keys(url: str, folder: Path) -> Iterator[None]:
    """50 clients guess keys."""

    def guess() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(50):
                client.get("/v1/jobs", headers={"Authorization": f"Bearer fs_{secrets.token_hex(8)}"})

    return repeatedly(50, guess)


def idle_connections(url: str, folder: Path) -> Iterator[None]:
    """5,000 connections that send nothing."""
    connections: list[socket.socket] = []
    while True:
        while len(connections) < 5000:
            with contextlib.suppress(OSError):
                connections.append(socket.create_connection(address_of(url), timeout=5))
            if len(connections) % 200 == 0:
                break
        else:
            connections.pop(0).close()
        yield


def watchers(url: str, folder: Path) -> Iterator[None]:
    """100 clients poll, and 100 read event streams."""
    job = post(url, SPEC).json()["id"]

    def stream() -> None:
        connection = http.client.HTTPConnection(*address_of(url), timeout=60)
        connection.request("GET", f"/v1/jobs/{job}/events")
        connection.getresponse().read()

    def poll() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(100):
                client.get(f"/v1/jobs/{job}")
                time.sleep(0.5)

    pollers = repeatedly(100, poll)
    next(pollers)
    return repeatedly(100, stream)


def dashboards(url: str, folder: Path) -> Iterator[None]:
    """30 browsers load the dashboard and its script."""

    def load() -> None:
        for path in ("/dashboard", "/static/bundle.js", "/api/studies", "/docs", "/openapi.json", "/metrics"):
            httpx.get(f"{url}{path}", timeout=60)

    return repeatedly(30, load)


ATTACKS = (
    *(nothing, locked_database, deep_globs, absurd_configurations, absurd_bodies, slow_bodies, slow_heads),
    *(oversized_bodies, wrong_keys, idle_connections, watchers, dashboards),
)


def attack(name: str, url: str, folder: Path) -> None:
    """Attack until the process is killed."""
    for _ in globals()[name](url, folder):
        time.sleep(0.01)


def sample(url: str, seconds: float, found: "multiprocessing.Queue[dict[str, list[float]]]") -> None:
    """Ask for health again and again; an answer that does not come counts as 60 seconds."""
    taken: dict[str, list[float]] = {"/healthz": [], "/readyz": []}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path, times in taken.items():
            started = time.monotonic()
            connection = http.client.HTTPConnection(*address_of(url), timeout=60)
            try:
                connection.request("GET", path)
                answered = connection.getresponse().status in ((200,) if path == "/healthz" else (200, 503))
            except OSError:
                answered = False
            finally:
                connection.close()
            times.append(time.monotonic() - started if answered else 60.0)
        time.sleep(PAUSE_SECONDS)
    found.put(taken)


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "api", "serve", "--port", "0", "--no-coordinator", "--root", str(folder), *options]
    command += ["--database", f"sqlite:///{folder / 'jobs.db'}", "--log-level", "error"]
    command += ["--stop-at-end-of-input"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[2]
    finally:
        process.terminate()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()


def measure(name: str, seconds: float) -> dict[str, list[float]]:
    """The times of the answers during an attack on a new server."""
    found: multiprocessing.Queue[dict[str, list[float]]] = multiprocessing.Queue()
    with tempfile.TemporaryDirectory(prefix="health") as scratch, served(Path(scratch)) as url:
        with contextlib.suppress(httpx.HTTPError):
            post(url, SPEC)  # the first submission imports torch, which takes seconds
        attacker = multiprocessing.Process(target=attack, args=(name, url, Path(scratch)), daemon=True)
        attacker.start()
        time.sleep(min(2.0, seconds / 4))
        sampler = multiprocessing.Process(target=sample, args=(url, seconds, found))
        sampler.start()
        try:
            return found.get(timeout=seconds + 300)
        finally:
            sampler.join()
            attacker.kill()
            attacker.join()


def main() -> int:
    names = [one.__name__ for one in ATTACKS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each attack (default: 15)")
    parser.add_argument("--attacks", nargs="+", choices=names, default=names, help="default: all")
    given = parser.parse_args()
    print(f"{'attack':24}{'answers':>8}{'/healthz median':>17}{'worst':>9}{'/readyz median':>17}{'worst':>9}")
    fine = True
    for name in given.attacks:
        taken = measure(name, given.seconds)
        live, ready = taken["/healthz"], taken["/readyz"]
        numbers = [statistics.median(live), max(live), statistics.median(ready), max(ready)]
        shown = [f"{1000 * number:.0f} ms" for number in numbers]
        print(f"{name:24}{len(live):8}{shown[0]:>17}{shown[1]:>9}{shown[2]:>17}{shown[3]:>9}", flush=True)
        fine = fine and numbers[0] <= MEDIAN_LIMIT and numbers[1] <= WORST_LIMIT
    print(f"required: median {1000 * MEDIAN_LIMIT:.0f} ms, worst {1000 * WORST_LIMIT:.0f} ms of /healthz")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPU cores")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
