"""A stand-in for a model: an objective with a known optimum, behind the evaluator's protocol."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from transformers import AutoConfig

from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED, Evaluation
from factor_search.measure.race import Race, rungs
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.search.space import SearchSpace
from factor_search.text.samples import Sample, SampleSet

SAMPLES = SampleSet("search", (Sample("synthetic", np.zeros(2, dtype=np.int64), "0" * 64),))


def geometry(pairs: int = 16, original: int = 256) -> Geometry:
    config = AutoConfig.for_model("llama", head_dim=2 * pairs, max_position_embeddings=original)
    return read_geometry(config)


def contains(space: SearchSpace, factors: Factors) -> bool:
    """Whether a candidate lies in the space exactly."""
    return len(factors.rescale_factors) == space.pairs and space.factors(space.project(factors)) == factors


def is_monotone(factors: Factors) -> bool:
    """Whether lambda_i <= lambda_{i+1} holds for every i."""
    return list(factors.rescale_factors) == sorted(factors.rescale_factors)


class SyntheticEvaluator:
    """Loss 1 + mean squared distance in log lambda to an optimum; counts its calls."""

    def __init__(self, optimum: Sequence[float], diverging: frozenset[int] = frozenset(), stop_at: int = 10**9) -> None:
        self._optimum = np.log(optimum)
        self._diverging = diverging
        self._stop_at = stop_at
        self.calls: list[Factors] = []

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return sha256_of([factors.as_json(), samples.sha256, documents])

    def earlier_key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str | None:
        return None

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


def many_documents(count: int) -> SampleSet:
    names = [f"synthetic {number}" for number in range(count)]
    return SampleSet("search", tuple(Sample(name, np.zeros(2, dtype=np.int64), sha256_of(name)) for name in names))


class ManyDocuments:
    """Documents that differ in loss far more than candidates do, agree about most of the optimum, and are rugged.

    Stops, continues and fails as an evaluator of a model does; records what it had to compute.
    """

    def __init__(
        self,
        optimum: Sequence[float],
        *,
        attention_factor: float | None = None,
        initial_tokens: int = 0,
        diverges: Callable[[Factors, int], bool] = lambda factors, document: False,
    ) -> None:
        self._optimum = np.log(optimum)
        self._attention_factor = attention_factor
        self._initial_tokens = initial_tokens
        self._diverges = diverges
        self.computed: list[tuple[Factors, int]] = []
        """Each candidate with the number of a document."""

    def common(self, factors: Factors) -> float:
        """What documents agree about: nats above the optimum."""
        loss = 0.3 * float(np.mean((np.log(factors.rescale_factors) - self._optimum) ** 2))
        if self._attention_factor is not None:
            loss += 2.0 * (factors.attention_factor - self._attention_factor) ** 2
        return loss + 0.01 * abs(math.log1p(factors.initial_tokens) - math.log1p(self._initial_tokens))

    def document_loss(self, factors: Factors, document: int) -> float:
        if self._diverges(factors, document):
            return math.nan
        rng = np.random.default_rng(document)
        level, *slopes = rng.normal(size=1 + len(factors.rescale_factors))
        distance = np.log(factors.rescale_factors) - self._optimum
        own = 0.01 * float(np.mean(distance * slopes)) + 0.0005 * math.sin(300 * float(distance.sum()) + document)
        return 2.5 + 0.3 * level + self.common(factors) + own

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return sha256_of([factors.as_json(), samples.sha256, documents])

    def earlier_key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str | None:
        return None

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        return (self.evaluate(factors, samples, race=race) for factors in candidates)

    def evaluate(
        self, factors: Factors, samples: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        total, losses, outcome = len(samples.samples), list(known.losses) if known else [], OK
        for stop in [*(rungs(total) if race else ()), total]:
            for document in range(len(losses), stop):
                self.computed.append((factors, document))
                losses.append(self.document_loss(factors, document))
            if race and math.isfinite(sum(losses)) and race.stops(losses, total):
                outcome = PRUNED
                break
        if not math.isfinite(sum(losses)):
            outcome, losses = DIVERGED, []
        return Evaluation(
            key=self.key(factors, samples, len(losses) if outcome == PRUNED else None),
            factors=factors,
            part=samples.part,
            outcome=outcome,
            losses=tuple(losses),
            tokens=(100,) * len(losses),
            losses_at={},
            seconds=float(len(losses)),
        )
