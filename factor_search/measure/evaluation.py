"""One candidate on one set of samples: what is kept of it, and how it is addressed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.measure.race import Race
from factor_search.measure.statistics import Summary, summarise
from factor_search.text.samples import SampleSet


class Outcome(StrEnum):
    """How an evaluation ended; the values are what is stored and sent."""

    OK = "ok"
    PRUNED = "pruned"
    """Stopped before the last document."""
    DIVERGED = "diverged"
    """A loss is not finite."""
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


OK, PRUNED, DIVERGED, OUT_OF_MEMORY = Outcome.OK, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY
WORKER_LOST, TIMED_OUT, FAILED = Outcome.WORKER_LOST, Outcome.TIMED_OUT, Outcome.FAILED
"""What only happens to evaluations in other processes."""
LASTING = frozenset({OK, PRUNED, DIVERGED})
"""Outcomes that say something about the candidate; the others are worth another attempt elsewhere."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one candidate on one set of samples."""

    key: str
    """Content address: hash of everything the losses depend on."""
    factors: Factors
    part: str
    """Which samples: search, validation, held_out, held_out_text or evaluation."""
    outcome: str
    """One of :class:`Outcome`."""
    losses: tuple[float, ...]
    """Mean loss of each document, nats per scored token; of the first documents only if pruned, empty unless ok or
    pruned."""
    tokens: tuple[int, ...]
    """Tokens scored in each document."""
    losses_at: dict[int, tuple[float, ...]]
    """The same within the first n tokens of each document, for a ladder of lengths n; empty where windows slide or
    only some tokens are scored, since a prefix may have none of these."""
    seconds: float

    @property
    def loss(self) -> float:
        """Mean loss in nats per scored token; infinite unless ok, so that any comparison rejects it."""
        return self.summary.loss if self.outcome == OK else float("inf")

    @property
    def summary(self) -> Summary:
        """Perplexity with its standard error over the documents evaluated; only if it is ok or pruned."""
        return summarise(self.losses, self.tokens)

    def as_json(self) -> dict[str, Any]:
        """One line of ``evaluations.jsonl``."""
        return {
            "key": self.key,
            "part": self.part,
            "outcome": self.outcome,
            **self.factors.as_json(),
            "losses": list(self.losses),
            "tokens": list(self.tokens),
            "losses_at": {str(length): list(losses) for length, losses in self.losses_at.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Evaluation":
        """Inverse of :meth:`as_json`; KeyError, TypeError or ValueError on anything else."""
        return cls(
            key=line["key"],
            factors=Factors.of(line["rescale_factors"], line["initial_tokens"], line["attention_factor"]),
            part=line["part"],
            outcome=line["outcome"],
            losses=tuple(line["losses"]),
            tokens=tuple(line["tokens"]),
            losses_at={length: tuple(line["losses_at"][str(length)]) for length in sorted(map(int, line["losses_at"]))},
            seconds=line["seconds"],
        )


class Evaluator(Protocol):
    """Whatever can turn candidates into evaluations: this process, or a pool of workers."""

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """The address under which the result would be stored; with ``documents``, if it is pruned after so many."""
        ...

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """Their evaluations in the order given, each as soon as it and those before it are known.

        In a race, candidates may be stopped before their last document, and what is stored of them is continued.
        Whoever closes the iterator early wants no more of them.
        """
        ...


def evaluation_key(
    identity: dict[str, str],
    original_length: int,
    length: int,
    stride: int | None,
    factors: Factors,
    samples: SampleSet,
    documents: int | None = None,
) -> str:
    """The address of an evaluation: hash of model, precision, attention, samples, length, objective and factors.

    Args:
        identity: of the loaded model.
        original_length: of the model in tokens; initial tokens and the ladder of lengths depend on it.
        length: of the window in tokens.
        stride: of the sliding window, None for the first window only.
        factors: the candidate.
        samples: the documents, in order.
        documents: for a candidate pruned after so many of them; None for one evaluated on all.
    """
    return sha256_of(
        {
            **identity,
            "length": length,
            "original_length": original_length,
            "stride": stride,
            "samples": [sample.address for sample in samples.samples[:documents]],
            "factors": factors.as_json(),
            **({} if documents is None else {"outcome": PRUNED}),
        }
    )
