"""How far the predictions of factors are from those of the untouched model in short texts."""

from factor_search.measure.divergence import DivergenceSamples
from factor_search.measure.request import Measured
from factor_search.methods import untouched
from factor_search.search.problem import SearchProblem
from factor_search.text.samples import Samples, SampleSet

PART: Measured = "divergence"
DOCUMENTS = 4
"""Held-out documents at most; a divergence differs less between documents than a loss does."""


def short_texts(problem: SearchProblem, samples: Samples) -> DivergenceSamples:
    """Return the first tokens of held-out documents, up to the original length, with the untouched model as reference.

    The losses of candidates on them are divergences, see :func:`factor_search.model.losses.divergences`.
    """
    documents = samples.held_out_text or samples.held_out
    short = SampleSet(PART, documents.samples[:DOCUMENTS]).cut(length_of(problem))
    return DivergenceSamples(PART, short.samples, untouched(problem.geometry))


def length_of(problem: SearchProblem) -> int:
    """Tokens of each document that are read."""
    return min(problem.geometry.original_length, problem.spec.target_length)
