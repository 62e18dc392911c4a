"""The processes of the service under test: ``serve`` and ``coordinate``, each as the product starts it.

    python -m bench.faults.processes serve|coordinate ARGUMENTS

``serve`` is ``factor-search serve`` with a coordinator whose workers are :class:`bench.faults.worker.FaultWorker`, and
which is restarted after at most two seconds. ``coordinate`` is ``python -m workers`` with these workers. It delivers
tasks and records twice while the file in ``$FACTOR_SEARCH_BENCH_TWICE`` exists.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from bench.faults.stepped_clock import FILE as CLOCK
from bench.faults.stepped_clock import install

TWICE = "FACTOR_SEARCH_BENCH_TWICE"
LEASE_SECONDS = 3.0


def serve(arguments: list[str]) -> int:
    import api.cli
    import api.cli.serve
    from workers.supervisor import Supervisor

    plain = api.cli.serve.coordinator_command

    def command(*given: Any) -> list[str]:
        _, _, _, _, *rest = plain(*given)  # python -P -m workers
        return [sys.executable, "-m", __spec__.name, "coordinate", *rest, "--lease-seconds", str(LEASE_SECONDS)]

    def soon(*given: Any, **options: Any) -> Supervisor:
        return Supervisor(*given, **options, longest_delay_seconds=2.0)

    with mock.patch.multiple("api.cli.serve", coordinator_command=command, Supervisor=soon):
        return api.cli.main(["serve", *arguments])


def coordinate(arguments: list[str]) -> int:
    from workers import __main__ as command
    from workers.ray_environment import prepare_environment

    prepare_environment(arguments[arguments.index("--ray-address") + 1] if "--ray-address" in arguments else None)
    import workers.ray_backend
    from bench.faults.worker import FaultWorker
    from storage.evaluations import EvaluationStore

    plain, deliver, record = (
        workers.ray_backend.RayBackend,
        workers.ray_backend.RayWorker.evaluate,
        EvaluationStore.record,
    )
    twice = Path(os.environ[TWICE])

    def deliver_twice(worker: Any, *given: Any, **options: Any) -> Any:
        if twice.exists():
            deliver(worker, *given, **options)
        return deliver(worker, *given, **options)

    def record_twice(store: Any, batches: Any) -> Any:
        if twice.exists():
            record(store, batches)
        return record(store, batches)

    def backend(*given: Any, **options: Any) -> Any:
        return plain(*given, **options, worker_class=FaultWorker)

    with (
        mock.patch("workers.ray_backend.RayWorker.evaluate", deliver_twice),
        mock.patch("storage.evaluations.EvaluationStore.record", record_twice),
        mock.patch("workers.ray_backend.RayBackend", backend),
    ):
        return command.main(arguments)


if __name__ == "__main__":
    if CLOCK in os.environ:
        install(Path(os.environ[CLOCK]))
    sys.exit({"serve": serve, "coordinate": coordinate}[sys.argv[1]](sys.argv[2:]))
