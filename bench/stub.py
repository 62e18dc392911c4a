"""A worker without a model: it sleeps, and scores candidates by their distance from an optimum."""

import hashlib
import math
import os
import random
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig

from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, PRUNED, Evaluation, evaluation_key
from factor_search.measure.race import Race, rungs
from factor_search.methods import closed_form
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.spec import JobSpec, parse_spec
from factor_search.text.samples import Sample, Samples, SampleSet
from workers.model_worker import LongTaskCall, Prepared, Setting

IDENTITY = {"model": "stub", "dtype": "float32", "attention": "none"}
PAIRS, ORIGINAL, TARGET = 16, 256, 1024


ONE_BY_ONE = {
    "kind": "evolution",
    "population": 24,
    "parents": 12,
    "mutants": 8,
    "crossovers": 8,
    "generations": 10_000,
}
"""A strategy that evaluates each candidate once, on all documents."""


def stub_spec(**changes: object) -> JobSpec:
    """A job that stub workers can do."""
    document = {"name": "stub", "model": "stub", "data": ["none"], "target_length": TARGET, "strategy": ONE_BY_ONE}
    return parse_spec(document | {"budget": 100} | changes)


def geometry() -> Geometry:
    return read_geometry(AutoConfig.for_model("llama", head_dim=2 * PAIRS, max_position_embeddings=ORIGINAL))


def samples(documents: int = 2) -> Samples:
    def part(name: str) -> SampleSet:
        names = [f"{name}-{i}" for i in range(documents)]
        tokens = np.zeros(4, dtype=np.int64)
        return SampleSet(name, tuple(Sample(n, tokens, hashlib.sha256(n.encode()).hexdigest()) for n in names))

    return Samples(part("search"), part("validation"), part("held_out"))


PREPARED = Prepared(IDENTITY, geometry(), samples())
OPTIMUM = np.log(closed_form("yarn", geometry(), TARGET).rescale_factors) * 0.9


def score(
    factors: Factors,
    part: SampleSet,
    seconds: float = 0.0,
    *,
    race: Race | None = None,
    known: Evaluation | None = None,
) -> Evaluation:
    """The evaluation of a candidate, without waiting; candidates that are close rank differently by documents."""
    distance = float(np.mean((np.log(factors.rescale_factors) - OPTIMUM) ** 2))
    loss = 1.0 + distance + 0.01 * math.log1p(factors.initial_tokens)
    total = len(part.samples)
    losses = list(known.losses) if known else []
    losses += [loss + 0.01 * i + 0.003 * math.sin(1e3 * (i + 1) * distance) for i in range(len(losses), total)]
    first = len(known.losses) if known else 1
    stops = (count for count in rungs(total) if count >= first and race and race.stops(losses[:count], total))
    count = next(stops, total)
    return Evaluation(
        key=evaluation_key(IDENTITY, ORIGINAL, TARGET, None, factors, part, None if count == total else count),
        factors=factors,
        part=part.part,
        outcome=OK if count == total else PRUNED,
        losses=tuple(losses[:count]),
        tokens=(TARGET - 1,) * count,
        losses_at={},
        seconds=seconds + (known.seconds if known else 0.0),
    )


class StubEvaluator:
    """Evaluates in this process, without waiting: the result that a search through the service must equal."""

    def key(self, factors: Factors, part: SampleSet, documents: int | None = None) -> str:
        return evaluation_key(IDENTITY, ORIGINAL, TARGET, None, factors, part, documents)

    def earlier_key(self, factors: Factors, part: SampleSet, documents: int | None = None) -> str | None:
        return None

    def evaluate(
        self, factors: Factors, part: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        return score(factors, part, race=race, known=known)

    def evaluate_all(
        self, candidates: Sequence[Factors], part: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        return (self.evaluate(factors, part, race=race) for factors in candidates)


class StubWorker:
    """Sleeps between 0.5 and 1.5 times ``mean_seconds`` for each candidate."""

    mean_seconds = float(os.environ.get("STUB_SECONDS", "0"))

    def __init__(self, threads: int | None = None) -> None:
        self._samples: dict[str, SampleSet] = {}
        self.busy_seconds = 0.0
        self._progress: dict[str, Any] | None = None

    def name(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def prepare(
        self, spec: JobSpec, samples: Samples | None = None, begun: Mapping[str, str] | None = None
    ) -> Prepared:
        return PREPARED

    def load(self, setting: Setting) -> None:
        pass

    def knows(self, samples_sha256: str) -> bool:
        return samples_sha256 in self._samples

    def learn(self, samples_sha256: str, samples: SampleSet) -> None:
        self._samples[samples_sha256] = samples

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples_sha256: str,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        start = time.perf_counter()
        if self.mean_seconds:
            time.sleep(self.mean_seconds * random.uniform(0.5, 1.5))
        samples, seconds = self._samples[samples_sha256], time.perf_counter() - start
        return score(factors, samples, seconds, race=race, known=known)

    def losses_so_far(self) -> list[float]:
        return []

    def peak_memory(self) -> int | None:
        return None

    def run_long_task(self, call: LongTaskCall) -> Any:
        try:
            return call(self._report_progress)
        finally:
            self._progress = None

    def progress(self) -> dict[str, Any] | None:
        return self._progress

    def _report_progress(self, progress: dict[str, Any]) -> None:
        self._progress = progress
