"""A stand-in for a model: an objective with a known optimum, behind the evaluator's protocol."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import AutoConfig

from factor_search.canonical_json import sha256_of
from factor_search.evaluation import DIVERGED, OK, Evaluation
from factor_search.factors import Factors
from factor_search.geometry import Geometry, read_geometry
from factor_search.race import Race
from factor_search.samples import Sample, SampleSet

SAMPLES = SampleSet("search", (Sample("synthetic", np.zeros(2, dtype=np.int64), "0" * 64),))


def geometry(pairs: int = 16, original: int = 256) -> Geometry:
    config = AutoConfig.for_model("llama", head_dim=2 * pairs, max_position_embeddings=original)
    return read_geometry(config)


class SyntheticEvaluator:
    """Loss 1 + mean squared distance in log lambda to an optimum; counts its calls."""

    def __init__(self, optimum: Sequence[float], diverging: frozenset[int] = frozenset(), stop_at: int = 10**9) -> None:
        self._optimum = np.log(optimum)
        self._diverging = diverging
        self._stop_at = stop_at
        self.calls: list[Factors] = []

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return sha256_of([factors.as_json(), samples.sha256, documents])

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        return (self.evaluate(factors, samples) for factors in candidates)

    def evaluate(
        self, factors: Factors, samples: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        if len(self.calls) == self._stop_at:
            raise KeyboardInterrupt
        self.calls.append(factors)
        loss = 1.0 + float(np.mean((np.log(factors.rescale_factors) - self._optimum) ** 2))
        loss += 0.01 * math.log1p(factors.initial_tokens) + 0.1 * abs(factors.attention_factor - 1.1)
        diverged = len(self.calls) in self._diverging
        return Evaluation(
            key=self.key(factors, samples),
            factors=factors,
            part=samples.part,
            outcome=DIVERGED if diverged else OK,
            losses=() if diverged else (loss,),
            tokens=() if diverged else (100,),
            losses_at={},
            seconds=0.5,
        )
