"""Workers of the campaign: stubs that note what they start, stubs that diverge, and the real worker for real models."""

import hashlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.stub import IDENTITY, StubEvaluator, StubWorker, geometry, score
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import PARTS, Sample, Samples, SampleSet
from workers.model_worker import ModelWorker, Prepared, Setting
from workers.policy import Policy
from workers.ray_backend import ActorMethods

STARTED = "FACTOR_SEARCH_BENCH_STARTED"
"""Environment variable with the file into which each start of an evaluation is written."""
STUB, HOSTILE = "stub", "hostile"
"""Names of the folders of models that stubs stand for; candidates of the second diverge or explode."""
SECONDS = 0.03
"""That a stub takes for a candidate."""


def prepared(spec: JobSpec) -> Prepared:
    """What a stub prepares: documents that no other job has, so that jobs do not share evaluations."""
    names = {part: f"{Path(spec.model.id).name} {spec.seed} {part}" for part in PARTS}
    hashes = {part: hashlib.sha256(name.encode()).hexdigest() for part, name in names.items()}
    tokens = np.zeros(4, dtype=np.int64)
    parts = [SampleSet(part, (Sample(names[part], tokens, hashes[part]),)) for part in PARTS]
    return Prepared(IDENTITY, geometry(), Samples(*parts))


def evaluate_stub(model: str, factors: Factors, part: SampleSet, **race: Any) -> Evaluation:
    """The evaluation of a candidate by a stub; in a hostile model some losses are NaN, infinite or huge."""
    evaluation = score(factors, part, **race)
    poison = {"0": math.nan, "1": math.inf, "2": 1e300}.get(factors.sha256[0]) if model == HOSTILE else None
    if poison is None:
        return evaluation
    losses = tuple(poison for _ in evaluation.losses)
    if not all(map(math.isfinite, losses)):  # as the evaluator of a real model does
        return Evaluation(evaluation.key, factors, part.part, DIVERGED, (), (), {}, 0.0)
    return Evaluation(
        evaluation.key, factors, part.part, evaluation.outcome, losses, evaluation.tokens, {}, evaluation.seconds
    )


class Undisturbed(StubEvaluator):
    """Evaluates in one process what the stubs of the service evaluate."""

    def __init__(self, model: str) -> None:
        self._model = model

    def evaluate(
        self, factors: Factors, part: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        return evaluate_stub(self._model, factors, part, race=race, known=known)


class FaultWorker(ActorMethods, ModelWorker):
    """The worker of the service under test."""

    def __init__(self, threads: int | None = None, policy: Policy | None = None) -> None:
        super().__init__(threads, policy)
        self._stub = StubWorker()

    @staticmethod
    def read(spec: JobSpec, policy: Policy | None = None) -> Samples:
        """See :meth:`workers.model_worker.ModelWorker.read`."""
        return prepared(spec).samples if is_stub(spec.model.id) else ModelWorker.read(spec, policy)

    def prepare(
        self, spec: JobSpec, samples: Samples | None = None, begun: Mapping[str, str] | None = None
    ) -> Prepared:
        return prepared(spec) if is_stub(spec.model.id) else super().prepare(spec, samples, begun)

    def load(self, setting: Setting) -> None:
        if not is_stub(setting.model.id):
            super().load(setting)

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples_sha256: str,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        began = time.monotonic()
        if is_stub(setting.model.id):
            time.sleep(SECONDS)
            samples = self._samples[samples_sha256]
            evaluation = evaluate_stub(Path(setting.model.id).name, factors, samples, race=race, known=known)
        else:
            evaluation = super().evaluate(setting, factors, samples_sha256, race=race, known=known)
        with Path(os.environ[STARTED]).open("a") as log:
            log.write(f"{began} {evaluation.key}\n")
        return evaluation


def is_stub(model: str) -> bool:
    return Path(model).name in (STUB, HOSTILE)
