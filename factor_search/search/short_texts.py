"""Short texts: windows of the original length, and how far predictions are there from those of the untouched model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from factor_search.measure.divergence import DivergenceSamples
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.request import Measured
from factor_search.methods import untouched
from factor_search.search.problem import SearchProblem
from factor_search.text.samples import Sample, Samples, SampleSet, sample_of

DIVERGENCE: Measured = "divergence"
DOCUMENTS = 4
"""Held-out documents at most; a divergence differs less between documents than a loss does."""
SHORT: Measured = "short_window"


@dataclass(frozen=True)
class Windows:
    """Windows of equal length in documents of equal length, evenly over each, without overlap."""

    samples: SampleSet
    """The windows of the first document, then those of the second, and so on; each begins with the prefix."""
    each: int
    """How many windows a document has."""

    @classmethod
    def of(cls, documents: SampleSet, length: int, most: int) -> "Windows":
        """Cut documents into windows.

        Args:
            documents: of equal length, at least that of a window.
            length: tokens of a window, the prefix included.
            most: windows of a document at most.
        """
        first = documents.samples[0]
        each = windows_of(len(first.tokens) - first.prefix, length - first.prefix, most)
        windows = [window for document in documents.samples for window in _windows(document, length, each)]
        return cls(SampleSet(SHORT, tuple(windows)), each)

    def by_document(self, evaluation: Evaluation) -> tuple[float, ...]:
        """The mean loss in the windows of each document; of none, where the outcome is not ok."""
        losses, each = evaluation.losses, self.each
        return tuple(math.fsum(losses[at : at + each]) / each for at in range(0, len(losses), each))


def windows_of(tokens: int, length: int, most: int) -> int:
    """How many windows of a length are taken of a document of so many tokens."""
    return max(min(tokens // length, most), 1)


def _windows(document: Sample, length: int, count: int) -> Iterator[Sample]:
    beginning, text = np.split(document.tokens, [document.prefix])
    room = length - document.prefix
    for start in np.linspace(0, len(text) - room, count).round().astype(int).tolist():
        tokens = np.concatenate([beginning, text[start : start + room]])
        yield sample_of(f"{document.source}@{start}", tokens, prefix=document.prefix)


def short_texts(problem: SearchProblem, samples: Samples) -> DivergenceSamples:
    """Return the first tokens of held-out documents, up to the original length, with the untouched model as reference.

    The losses of candidates on them are divergences, see :func:`factor_search.model.losses.divergences`.
    """
    documents = samples.held_out_text or samples.held_out
    short = SampleSet(DIVERGENCE, documents.samples[:DOCUMENTS]).cut(length_of(problem))
    return DivergenceSamples(DIVERGENCE, short.samples, untouched(problem.geometry))


def length_of(problem: SearchProblem) -> int:
    """Tokens of each document that are read."""
    return min(problem.geometry.original_length, problem.spec.target_length)
