"""A service without Ray: an application on a fresh database, a real server, and a coordinator that only writes."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.server import Server, listen, url_of
from api.settings import Settings
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED
from storage.coordinators import CoordinatorStore
from storage.database import Database
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import JobStore, Lease
from tests.records import candidate, computed
from workers.policy import Policy

BASE = "http://127.0.0.1"
SPEC: dict[str, Any] = {"name": "one", "model": "some/model", "data": {"dataset": "some/data"}, "target_length": 512}
PLAN: dict[str, Any] = {
    "name": "some plan",
    "model": "some/model",
    "data": {"dataset": "some/data"},
    "target_length": 2048,
    "recipe": "longrope",
}


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "database_url": f"sqlite:///{folder / 'jobs.db'}",
        "policy": Policy((folder,), allow_hub=True, allow_remote_code=False, work_folder=folder / "made"),
        "loopback": True,
        "poll_seconds": 0.05,
        "look_seconds": 0.05,
    }
    return Settings(**values | changes)


@contextlib.contextmanager
def calling(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of a real server in a thread."""
    ready = threading.Event()
    with listen("127.0.0.1", port) as listener:
        server = Server(app, log_level="warning", on_ready=ready.set, on_stop=lambda: None)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(30)
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def progress(generation: int, **changes: Any) -> dict[str, Any]:
    return {
        "phase": "searching",
        "generation": generation,
        "candidates": 4 * generation,
        "candidates_budget": 16,
        "evaluations": 4 * generation,
        "tokens": 1000 * generation,
        "seconds": 1.0 * generation,
        "best_perplexity": 5.25 if generation else None,
        "closed_form": "yarn" if generation else None,
        "closed_form_perplexity": 6.5 if generation else None,
        "share": min(generation / 4, 1.0),
        "workers": 2,
        "scored": None,
        "to_score": None,
        **dict.fromkeys(("step", "steps", "loss")),
        **changes,
    }


class FakeCoordinator:
    """Writes what a coordinator writes."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.jobs = JobStore(self.database)
        self.evaluations = EvaluationStore(self.database)

    def __enter__(self) -> "FakeCoordinator":
        CoordinatorStore(self.database).report("fake", "host", 1, {"workers": 4, "alive": 2, "busy": 1})
        return self

    def __exit__(self, *exception: object) -> None:
        self.database.close()

    def claim(self, prepared: dict[str, Any] | None = None) -> Lease:
        for _ in range(100):
            claim = self.jobs.claim("fake", 60)
            if claim is not None:
                self.evaluations.start_search(claim[1], 512, "study", prepared or {})
                return claim[1]
            time.sleep(0.05)
        raise AssertionError("nothing to claim")

    def generation(self, lease: Lease, number: int) -> None:
        """Four candidates, one of them pruned and one diverged, and their event."""
        items = [candidate(4 * number + i) for i in range(4)]
        outcomes = [OK, OK, PRUNED, DIVERGED]
        batch = Batch(
            started=items,
            computed=[
                computed(item, outcome, (1.5,) if outcome == PRUNED else (1.5, 1.25))
                for item, outcome in zip(items, outcomes, strict=True)
            ],
            done=[(item, outcome, False) for item, outcome in zip(items, outcomes, strict=True)],
            events=[("progress", progress(number + 1))],
            progress=progress(number + 1),
        )
        assert self.evaluations.record({lease: batch}).lost == []

    def event(self, lease: Lease, kind: str, **data: Any) -> None:
        self.evaluations.record({lease: Batch(events=[(kind, data)])})

    def finish(self, lease: Lease, factors: Any = None, report: Any = None) -> None:
        self.jobs.end(lease, "finished", factors=factors or {"a": 1}, report=report or {"b": 2})


def app_on(folder: Path, **changes: Any) -> FastAPI:
    return create_app(settings(folder, **changes))
