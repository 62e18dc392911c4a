"""An evaluation is the result of one candidate on one set of samples, stored under a content address."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.measure.divergence import reference_of
from factor_search.measure.race import Race
from factor_search.measure.statistics import Summary, summarise
from factor_search.text.samples import SampleSet


class Outcome(StrEnum):
    """How an evaluation ended; databases, files and the REST interface use these values."""

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
"""Outcomes of evaluations in other processes only."""
LASTING = frozenset({OK, PRUNED, DIVERGED})
"""Outcomes that depend on the candidate only; after any other outcome, another worker may try again."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one candidate on one set of samples."""

    key: str
    """The content address: a hash of everything that the losses depend on."""
    factors: Factors
    part: str
    """The set of samples: one of :data:`factor_search.measure.request.MEASURED`, or evaluation."""
    outcome: str
    """One of :class:`Outcome`."""
    losses: tuple[float, ...]
    """Mean loss (or divergence) of each document, nats per scored token. A pruned evaluation has those of the first
    documents; all other outcomes but ok have none."""
    tokens: tuple[int, ...]
    """Tokens scored in each document."""
    losses_at: dict[int, tuple[float, ...]]
    """The losses within the first n tokens of each document, by length n. Empty where windows slide or only some tokens
    are scored, since a prefix may contain no scored token."""
    seconds: float

    @property
    def loss(self) -> float:
        """The mean loss in nats per scored token; infinite unless the outcome is ok, so that comparisons reject it."""
        return self.summary.loss if self.outcome == OK else float("inf")

    @property
    def summary(self) -> Summary:
        """Perplexity and its standard error over the documents evaluated; it needs the outcome ok or pruned."""
        return summarise(self.losses, self.tokens)

    def as_json(self) -> dict[str, Any]:
        """Return the content of one line of ``evaluations.jsonl``."""
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
        """Read what :meth:`as_json` returned.

        Raises:
            KeyError, TypeError, ValueError: the content is not an evaluation.
        """
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
    """The interface of evaluators: this process or a pool of workers."""

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """Return the address of the result; with ``documents``, the address if it is pruned after so many."""
        ...

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """Yield the evaluations in the order given, each as soon as it and those before it are known.

        In a race, candidates may be stopped before their last document, and stored partial evaluations are continued.
        Closing the iterator early cancels the evaluations that are left.
        """
        ...


EARLIER_IDENTITY = ("model", "dtype", "attention")
"""What keys of earlier versions know of a model: neither the kind of device nor the versions of libraries."""


def earlier_key(
    identity: Mapping[str, str],
    original_length: int,
    length: int,
    stride: int | None,
    factors: Factors,
    samples: SampleSet,
    documents: int | None = None,
) -> str | None:
    """Return the address under which earlier versions stored an evaluation; see :func:`evaluation_key`.

    It is None where they measured something else: they scored the prefix of the tokenizer, only the first of sliding
    windows began with it, and they knew no divergence.
    """
    prefix = max(sample.prefix for sample in samples.samples)
    if prefix > 1 or (prefix and stride is not None) or reference_of(samples) is not None:
        return None
    known = {name: identity[name] for name in EARLIER_IDENTITY if name in identity}
    return evaluation_key(known, original_length, length, stride, factors, samples, documents)


def evaluation_key(
    identity: Mapping[str, str],
    original_length: int,
    length: int,
    stride: int | None,
    factors: Factors,
    samples: SampleSet,
    documents: int | None = None,
) -> str:
    """Compute the address of an evaluation: a hash of all that the losses depend on.

    Args:
        identity: identity of the loaded model, and its environment, which holds the version of keys; the keys of
            earlier versions have no environment.
        original_length: original length of the model in tokens, on which the losses by length depend.
        length: tokens of the window.
        stride: stride of the sliding window in tokens; None for the first window only.
        factors: the candidate.
        samples: the documents, in order.
        documents: number of documents after which the candidate was pruned; None if it was evaluated on all.
    """
    prefix, reference = max(sample.prefix for sample in samples.samples), reference_of(samples)
    return sha256_of(
        {
            **identity,
            "length": length,
            "original_length": original_length,
            "stride": stride,
            "samples": [sample.address for sample in samples.samples[:documents]],
            "factors": factors.as_json(),
            **({} if documents is None else {"outcome": PRUNED}),
            **({} if stride is None or not prefix else {"prefix": prefix}),  # every window begins with it
            **({} if reference is None else {"divergence_from": reference.as_json()}),
        }
    )
