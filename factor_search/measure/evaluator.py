"""Evaluates candidates in this process with a loaded model."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from factor_search.factors import Factors
from factor_search.measure.divergence import reference_of
from factor_search.measure.evaluation import (
    DIVERGED,
    OK,
    OUT_OF_MEMORY,
    PRUNED,
    Evaluation,
    earlier_key,
    evaluation_key,
)
from factor_search.measure.race import Race, rungs
from factor_search.measure.windows import Window, doubling_lengths, sliding_windows
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel
from factor_search.model.losses import divergences, predict, rows_per_pass, token_losses
from factor_search.text.samples import Sample, SampleSet
from factor_search.text.tokens import TokenIds


class LocalEvaluator:
    """Evaluates candidates in this process; a context manager, which wraps the model's rotary modules."""

    def __init__(self, loaded: LoadedModel, target_length: int, stride: int | None = None) -> None:
        self._loaded = loaded
        self._length = target_length
        self._stride = stride
        self._injector = Injector(loaded.model, loaded.geometry)
        self._rows_per_pass = rows_per_pass(target_length, loaded.model.device.type)

    def __enter__(self) -> "LocalEvaluator":
        self._injector.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._injector.__exit__(*exception)

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """See :func:`evaluation_key`."""
        return evaluation_key(*self._addressed, factors, samples, documents)

    def earlier_key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str | None:
        """See :func:`factor_search.measure.evaluation.earlier_key`."""
        return earlier_key(*self._addressed, factors, samples, documents)

    @property
    def _addressed(self) -> tuple[dict[str, str], int, int, int | None]:
        identity = self._loaded.identity | self._loaded.environment
        return identity, self._loaded.geometry.original_length, self._length, self._stride

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """Evaluate one candidate after the other, each when the iterator reaches it."""
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
        """Compute the candidate's loss on every sample; numerical divergence and lack of memory are outcomes.

        Args:
            factors: the candidate.
            samples: documents on which to evaluate the candidate.
            on_document: called with the mean loss of each document, in nats per token.
            race: may stop the candidate before the last document.
            known: an earlier pruned evaluation of the candidate on the same samples, which is continued.

        Raises:
            ModelChangedError: a file of the model has changed since it was loaded.
        """
        start = time.perf_counter()
        losses = list(known.losses) if known else []
        tokens = list(known.tokens) if known else []
        losses_at = {length: list(values) for length, values in known.losses_at.items()} if known else {}
        outcome, total, ladder = OK, len(samples.samples), self._ladder(samples)
        try:
            with self._injector.using([factors]):
                for stop in [*(rungs(total) if race else ()), total]:
                    part = replace(samples, samples=samples.samples[len(losses) : stop])
                    for document in self._document_losses(part, factors):
                        tokens.append(document.numel())
                        losses.append(document.mean().item())
                        on_document(losses[-1])
                        first = samples.samples[len(losses) - 1].first_scored
                        for length in ladder:
                            losses_at.setdefault(length, []).append(document[: length - first].mean().item())
                    if race and math.isfinite(sum(losses)) and race.stops(losses, total):
                        outcome = PRUNED
                        break
        except (torch.OutOfMemoryError, MemoryError):
            outcome = OUT_OF_MEMORY
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
            outcome = OUT_OF_MEMORY
        self._loaded.files.check_unchanged()  # weights may be mapped into memory, and follow the file
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

    def token_losses(self, factors: Factors, sample: Sample) -> Tensor:
        """Compute the loss of every scored token of a document: float64 of shape (tokens scored,), in nats."""
        with self._injector.using([factors]):
            return next(self._document_losses(SampleSet("", (sample,)), factors))

    def _ladder(self, samples: SampleSet) -> list[int]:
        """Return the lengths at which losses of prefixes are kept; these are exact, since factors are static."""
        if self._stride is not None or any(sample.scored is not None for sample in samples.samples):
            return []
        lengths = doubling_lengths(self._loaded.geometry.original_length, self._length)
        shortest = min(len(sample.tokens) for sample in samples.samples)
        return [length for length in lengths if length <= shortest]

    def _document_losses(self, samples: SampleSet, factors: Factors) -> Iterator[Tensor]:
        """Yield the losses of the scored tokens of each document: one float64 tensor on the CPU per document."""
        passes = [one for d, sample in enumerate(samples.samples) for one in self._passes(d, sample)]
        unfinished = Counter(one.document for one in passes)
        parts: list[list[Tensor]] = [[] for _ in samples.samples]
        for group in _alike(passes, self._rows_per_pass):
            rows = [_tokens(samples.samples[one.document], one.window) for one in group]
            found = self._losses(np.stack(rows), group, factors, reference_of(samples))
            for one, losses in zip(group, found, strict=True):
                d = one.document
                parts[d].append(losses)
                unfinished[d] -= 1
                if not unfinished[d]:  # passes are in the order of the documents
                    yield torch.cat(parts[d])
                    parts[d].clear()

    def _passes(self, document: int, sample: Sample) -> list["_Pass"]:
        """Return the windows of a document that score a token.

        Raises:
            ValueError: no window contains a token to score.
        """
        passes = []
        for window in sliding_windows(len(sample.tokens), self._length, self._stride, sample.prefix):
            if sample.scored is None:
                passes.append(_Pass(document, window, None))
            else:
                inside = [t - window.start for t in sample.scored if window.scored <= t < window.stop]
                passes += [_Pass(document, window, tuple(inside))] if inside else []
        if not passes:
            raise ValueError(f"no scored token of {sample.source} is within the window of {self._length} tokens")
        return passes

    def _losses(
        self, rows: TokenIds, group: list["_Pass"], factors: Factors, reference: Factors | None
    ) -> list[Tensor]:
        """Compute the losses of the scored tokens of passes of equal length: float64 on the CPU."""
        model = self._loaded.model
        ids = torch.from_numpy(rows).to(model.device)
        if reference is not None:
            with self._injector.using([reference] * len(rows) + [factors] * len(rows)):
                every = divergences(model, ids.repeat(2, 1))
        elif group[0].scored is None:
            every = token_losses(model, ids)
        else:
            union = sorted({position for one in group for position in one.scored or ()})
            some = predict(model, ids, union).losses.cpu().double()
            column = {position: number for number, position in enumerate(union)}
            return [row[[column[t] for t in one.scored or ()]] for row, one in zip(some, group, strict=True)]
        windows = (one.window for one in group)
        return [row[w.scored - w.start - 1 :] for row, w in zip(every.cpu().double(), windows, strict=True)]


def _tokens(sample: Sample, window: Window) -> TokenIds:
    """Return the tokens of a window, which begin with the prefix."""
    tokens = sample.tokens[window.start : window.stop]
    if window.start == 0 or sample.prefix == 0:
        return tokens
    return np.concatenate([sample.tokens[: sample.prefix], tokens[sample.prefix :]])


@dataclass(frozen=True)
class _Pass:
    """A forward pass over part of a document."""

    document: int
    window: Window
    scored: tuple[int, ...] | None
    """Positions within the window; None for all from ``window.scored`` on."""

    @property
    def kind(self) -> tuple[int, bool]:
        """The properties that all passes of a batch share: their length, and whether only some tokens are scored."""
        return self.window.stop - self.window.start, self.scored is not None


def _alike(passes: list[_Pass], most: int) -> list[list[_Pass]]:
    """Group consecutive passes of one kind, at most ``most`` in a group."""
    groups: list[list[_Pass]] = []
    for one in passes:
        last = groups[-1] if groups else None
        if last and len(last) < most and last[0].kind == one.kind:
            last.append(one)
        else:
            groups.append([one])
    return groups
