"""One candidate on one set of samples: how it is computed, what is kept of it, and how it is addressed."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from factor_search.canonical_json import sha256_of
from factor_search.factors import Factors
from factor_search.injection import Injector
from factor_search.models import LoadedModel
from factor_search.perplexity import Summary, Window, sliding_windows, summarise, token_losses
from factor_search.race import Race, rungs
from factor_search.samples import SampleSet

OK, PRUNED, DIVERGED, OUT_OF_MEMORY = "ok", "pruned", "diverged", "out_of_memory"
WORKER_LOST, TIMED_OUT, FAILED = "worker_lost", "timed_out", "failed"
"""What only happens to evaluations in other processes."""
LASTING = frozenset({OK, PRUNED, DIVERGED})
"""Outcomes that say something about the candidate; the others are worth another attempt elsewhere."""
TOKENS_PER_PASS_ON_GPU = 16_384
"""Samples are batched up to this many tokens on a GPU; on a CPU one at a time is as fast."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one candidate on one set of samples."""

    key: str
    """Content address: hash of everything the losses depend on."""
    factors: Factors
    part: str
    """Which samples: search, validation, held_out or evaluation."""
    outcome: str
    """``ok``, ``pruned`` (stopped before the last document), ``diverged`` (a loss is not finite), ``out_of_memory``,
    ``worker_lost``, ``timed_out`` or ``failed``."""
    losses: tuple[float, ...]
    """Mean loss of each document, nats per token; of the first documents only if pruned, empty unless ok or pruned."""
    tokens: tuple[int, ...]
    """Tokens predicted in each document."""
    losses_at: dict[int, tuple[float, ...]]
    """The same within the first n tokens of each document, for a ladder of lengths n."""
    seconds: float

    @property
    def loss(self) -> float:
        """Mean loss in nats per token; infinite unless ok, so that any comparison rejects it."""
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
            "samples": [sample.sha256 for sample in samples.samples[:documents]],
            "factors": factors.as_json(),
            **({} if documents is None else {"outcome": PRUNED}),
        }
    )


class LocalEvaluator:
    """Evaluates in this process; a context manager, since it holds on to the model's rotary modules."""

    def __init__(self, loaded: LoadedModel, target_length: int, stride: int | None = None) -> None:
        self._loaded = loaded
        self._length = target_length
        self._stride = stride
        self._injector = Injector(loaded.model, loaded.geometry)
        on_gpu = loaded.model.device.type != "cpu"
        self._rows_per_pass = max(1, TOKENS_PER_PASS_ON_GPU // target_length) if on_gpu else 1

    def __enter__(self) -> "LocalEvaluator":
        self._injector.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._injector.__exit__(*exception)

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """See :func:`evaluation_key`."""
        length, original_length = self._length, self._loaded.geometry.original_length
        identity = self._loaded.identity
        return evaluation_key(identity, original_length, length, self._stride, factors, samples, documents)

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """One after the other, each when it is asked for."""
        return (self.evaluate(factors, samples, race=race) for factors in candidates)

    def evaluate(
        self,
        factors: Factors,
        samples: SampleSet,
        on_document: Callable[[float], None] = lambda loss: None,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        """The candidate's loss on every sample; numerical divergence and lack of memory are outcomes, not errors.

        Args:
            factors: the candidate.
            samples: documents to evaluate it on.
            on_document: hears the mean loss of each document when it is known, in nats per token.
            race: may stop the candidate before the last document.
            known: the candidate as it was pruned earlier on the same samples, to go on from there.
        """
        start = time.perf_counter()
        losses = list(known.losses) if known else []
        tokens = list(known.tokens) if known else []
        losses_at = {length: list(values) for length, values in known.losses_at.items()} if known else {}
        outcome, total = OK, len(samples.samples)
        try:
            with self._injector.using([factors]):
                for stop in [*(rungs(total) if race else ()), total]:
                    part = SampleSet(samples.part, samples.samples[len(losses) : stop])
                    for document in self._document_losses(part):
                        tokens.append(document.numel())
                        losses.append(document.mean().item())
                        on_document(losses[-1])
                        for length in self._ladder():
                            losses_at.setdefault(length, []).append(document[: length - 1].mean().item())
                    if race and math.isfinite(sum(losses)) and race.stops(losses, total):
                        outcome = PRUNED
                        break
        except (torch.OutOfMemoryError, MemoryError):
            outcome = OUT_OF_MEMORY
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
            outcome = OUT_OF_MEMORY
        if outcome == OK and not torch.tensor(losses).isfinite().all():
            outcome = DIVERGED
        if outcome not in (OK, PRUNED):
            losses, tokens, losses_at = [], [], {}
        return Evaluation(
            key=self.key(factors, samples, len(losses) if outcome == PRUNED else None),
            factors=factors,
            part=samples.part,
            outcome=outcome,
            losses=tuple(losses),
            tokens=tuple(tokens),
            losses_at={length: tuple(values) for length, values in losses_at.items()},
            seconds=time.perf_counter() - start + (known.seconds if known else 0.0),
        )

    def _ladder(self) -> list[int]:
        """Original length, twice that, ... up to the target: a prefix's loss is exact, since factors do not change."""
        if self._stride is not None:
            return []
        length, rungs = self._loaded.geometry.original_length, []
        while length < self._length:
            rungs.append(length)
            length *= 2
        return [*rungs, self._length]

    def _document_losses(self, samples: SampleSet) -> Iterator[Tensor]:
        """Losses of every scored token of every document, float64 on the CPU, one tensor a document."""
        passes: list[tuple[int, Window]] = [
            (d, window)
            for d, sample in enumerate(samples.samples)
            for window in sliding_windows(len(sample.tokens), self._length, self._stride)
        ]
        unfinished = Counter(d for d, _ in passes)
        parts: list[list[Tensor]] = [[] for _ in samples.samples]
        for group in _equal_lengths(passes, self._rows_per_pass):
            rows = [torch.from_numpy(samples.samples[d].tokens[w.start : w.stop]) for d, w in group]
            losses = token_losses(self._loaded.model, torch.stack(rows).to(self._loaded.model.device)).cpu().double()
            for row, (d, window) in zip(losses, group, strict=True):
                parts[d].append(row[window.scored - window.start - 1 :])
                unfinished[d] -= 1
                if not unfinished[d]:  # passes are in the order of the documents, and so are their ends
                    yield torch.cat(parts[d])
                    parts[d].clear()


def _equal_lengths(passes: list[tuple[int, Window]], most: int) -> list[list[tuple[int, Window]]]:
    """Consecutive passes of equal length, in groups of at most ``most``."""
    groups: list[list[tuple[int, Window]]] = []
    for item in passes:
        length = item[1].stop - item[1].start
        last = groups[-1] if groups else None
        if last and len(last) < most and last[0][1].stop - last[0][1].start == length:
            last.append(item)
        else:
            groups.append([item])
    return groups
