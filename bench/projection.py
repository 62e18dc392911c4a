"""Whether the projection slows down recording: ``python -m bench.projection --database sqlite|postgresql``.

The benchmark records 500 stub candidates a second, each started and then finished, with and without a projector at
the same time. It prints the slowest and the median write of a batch, the speed reached, and how long after the last
batch the dashboard's tables are complete.
"""

import argparse
import random
import statistics
import time

from bench.dashboard import evaluated, new_job, proposed
from bench.scratch import scratch_database
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projector import start
from storage.dashboard.unprojected import catch_up
from storage.database import Database
from storage.evaluations import Batch, Computed, EvaluationStore

PER_SECOND, BATCH, SECONDS = 500, 25, 10
OWNER = "bench"


def stub_load(database: Database, projected: bool) -> None:
    lease, store, draw = new_job(database, "stub"), EvaluationStore(database), random.Random(0)
    candidates = [proposed(number, draw) for number in range(PER_SECOND * SECONDS)]
    process = start(database.url, optuna_url_beside(database.url), OWNER) if projected else None
    time.sleep(4 if projected else 0)  # until it has imported everything
    writes = []
    begin = time.perf_counter()
    for first in range(0, len(candidates), BATCH):
        time.sleep(max(0.0, begin + first / PER_SECOND - time.perf_counter()))
        items = candidates[first : first + BATCH]
        computed = [
            Computed(evaluation=evaluated(item, draw, len(candidates)), worker="stub:1", attempts=1) for item in items
        ]
        done = [(item, result.evaluation.outcome, False) for item, result in zip(items, computed, strict=True)]
        for batch in (Batch(started=items), Batch(computed=computed, done=done)):
            before = time.perf_counter()
            store.record({lease: batch})
            writes.append(time.perf_counter() - before)
    kept = len(candidates) / (time.perf_counter() - begin)
    line = f"{kept:.0f} candidates/s kept; a batch written in {1000 * statistics.median(writes):.1f} ms, "
    line += f"at most {1000 * max(writes):.0f} ms"
    if process is not None:
        before = time.perf_counter()
        left = catch_up(database, lease.job_id, 60)
        line += f"; {left} left {time.perf_counter() - before:.1f} s after the last"
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
    print(f"  {'with' if projected else 'without'} a projector: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    kind = parser.parse_args().database
    print(f"{kind}: {PER_SECOND} candidates a second for {SECONDS} s")
    for projected in (False, True):
        with scratch_database(kind) as url, Database(url) as database:
            stub_load(database, projected)


if __name__ == "__main__":
    main()
