"""Measures perplexity by length: candidates and closed forms at the original length, twice that, ... and the target."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.files.canonical_json import finite
from factor_search.measure.evaluation import OK, Evaluation, Evaluator
from factor_search.measure.statistics import paired_difference
from factor_search.methods import USUAL, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.text.samples import SampleSet, sample_of

SCHEMA = "factor-search/ladder@1"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One candidate or closed form at one length."""

    name: str
    length: int
    """Tokens of each document."""
    outcome: str
    """Outcome of the evaluation; all numbers are None unless it is ``ok``."""
    perplexity: float | None = None
    standard_error: float | None = None
    """Standard error over documents; None for a single document."""
    difference: float | None = None
    """Loss minus that of the best closed form at this length, paired over documents, in nats per token."""
    difference_standard_error: float | None = None
    documents: int = 0
    tokens: int = 0
    """Tokens scored in all documents."""


@dataclass(frozen=True)
class Ladder:
    """The measurements of all candidates at all lengths."""

    lengths: tuple[int, ...]
    best_closed_forms: dict[int, str]
    """The closed form with the lowest loss, by length; none at a length where all fail."""
    rungs: tuple[Rung, ...]
    """Ordered by length, then by candidate, with the closed forms last."""

    def as_json(self) -> dict[str, Any]:
        """Return a JSON document, which :func:`factor_search.report.plots.draw_ladder` draws."""
        return {
            "schema": SCHEMA,
            "lengths": list(self.lengths),
            "best_closed_forms": {str(length): name for length, name in self.best_closed_forms.items()},
            "rungs": [vars(rung).copy() for rung in self.rungs],
        }


def ladder(
    evaluator: Evaluator,
    geometry: Geometry,
    candidates: Mapping[str, Factors],
    documents: SampleSet,
    lengths: Sequence[int],
    also: Collection[str] = (),
) -> Ladder:
    """Measure candidates and the usual closed forms for the largest length at each length.

    At each length, every document is cut to its first tokens and evaluated in one window. The factors are the same at
    all lengths, as in an inference engine that loads static factors.

    Args:
        evaluator: an evaluator with a window of at least the largest length.
        geometry: geometry of the model.
        candidates: factors by name; the names of closed forms are not allowed.
        documents: documents of plain text, each with at least as many tokens as the largest length.
        lengths: lengths in tokens, 2 or more each; see :func:`factor_search.measure.windows.doubling_lengths`.
        also: other closed forms that are measured; names of what is none are ignored.

    Raises:
        DataError: a document is too short, or only some of its tokens are scored.
        SpecError: the largest length is below the model's original length.
        ValueError: a candidate has the name of a closed form.
    """
    ordered = tuple(sorted(set(lengths)))
    forms = closed_forms(geometry, ordered[-1])
    if taken := sorted(set(candidates) & set(forms)):
        raise ValueError(f"{', '.join(taken)} cannot be the name of a candidate: a closed form has this name")
    forms = {name: factors for name, factors in forms.items() if name in USUAL or name in also}
    everything = {**candidates, **forms}
    best: dict[int, str] = {}
    rungs: list[Rung] = []
    for length in ordered:
        samples = _cut(documents, length)
        evaluations = dict(zip(everything, evaluator.evaluate_all(list(everything.values()), samples), strict=True))
        name = min(forms, key=lambda one: evaluations[one].loss)
        reference = evaluations[name] if evaluations[name].outcome == OK else None
        if reference is not None:
            best[length] = name
        rungs += [_rung(name, length, evaluation, reference) for name, evaluation in evaluations.items()]
    return Ladder(ordered, best, tuple(rungs))


def _cut(documents: SampleSet, length: int) -> SampleSet:
    """Cut every document to its first tokens."""
    for document in documents.samples:
        if len(document.tokens) < length:
            raise DataError(f"{document.source} has {len(document.tokens)} tokens, but {length} are needed")
        if document.scored is not None:
            raise DataError(f"{document.source} scores only some of its tokens: give documents of plain text")
    cut = (sample_of(one.source, one.tokens[:length], prefix=one.prefix) for one in documents.samples)
    return SampleSet(documents.part, tuple(cut))


def _rung(name: str, length: int, evaluation: Evaluation, reference: Evaluation | None) -> Rung:
    if evaluation.outcome != OK:
        return Rung(name=name, length=length, outcome=evaluation.outcome)
    summary = evaluation.summary
    difference, error = None, math.nan
    if reference is not None:
        difference, error = paired_difference(evaluation.losses, reference.losses, reference.tokens)
    return Rung(
        name=name,
        length=length,
        outcome=OK,
        perplexity=finite(summary.perplexity),
        standard_error=finite(summary.standard_error),
        difference=difference,
        difference_standard_error=finite(error),
        documents=summary.documents,
        tokens=summary.tokens,
    )
