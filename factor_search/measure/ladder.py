"""Perplexity by length: candidates and closed forms, each at the original length, twice that, ... and the target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.files.canonical_json import finite
from factor_search.measure.evaluation import OK, Evaluation, Evaluator
from factor_search.measure.statistics import paired_difference
from factor_search.methods import closed_forms
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
    """Of the evaluation; without ``ok`` there are no figures."""
    perplexity: float | None = None
    standard_error: float | None = None
    """Over documents; None for a single one."""
    difference: float | None = None
    """Minus the loss of the closed form that is best at this length, in pairs over documents: nats per token."""
    difference_standard_error: float | None = None
    documents: int = 0
    tokens: int = 0
    """Scored, in all documents."""


@dataclass(frozen=True)
class Ladder:
    """All lengths of all candidates."""

    lengths: tuple[int, ...]
    best_closed_forms: dict[int, str]
    """By length: the one of the lowest loss. A length at which all fail has none."""
    rungs: tuple[Rung, ...]
    """By length, then in the order of the candidates, the closed forms last."""

    def as_json(self) -> dict[str, Any]:
        """A document, which :func:`factor_search.report.plots.draw_ladder` draws."""
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
) -> Ladder:
    """Measure candidates, and every closed form for the largest length, at each length.

    Each length is a window of its own: every document cut to its first tokens. Factors are the same at all lengths, as
    they are where static factors are loaded into an engine.

    Args:
        evaluator: whose window has room for the largest length.
        geometry: of the model.
        candidates: by names other than those of closed forms.
        documents: of plain text, each with as many tokens as the largest length.
        lengths: in tokens, 2 or more each; see :func:`factor_search.measure.windows.doubling_lengths`.

    Raises:
        DataError: a document is too short, or does not score all its tokens.
        SpecError: the largest length is below the model's original one.
        ValueError: a candidate has the name of a closed form.
    """
    ordered = tuple(sorted(set(lengths)))
    forms = closed_forms(geometry, ordered[-1])
    if taken := sorted(set(candidates) & set(forms)):
        raise ValueError(f"{', '.join(taken)} cannot be the name of a candidate: it is that of a closed form")
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
    """The first tokens of every document."""
    for document in documents.samples:
        if len(document.tokens) < length:
            raise DataError(f"{document.source} has {len(document.tokens)} tokens, of {length} needed")
        if document.scored is not None:
            raise DataError(f"{document.source} scores only some of its tokens: a ladder needs documents of plain text")
    cut = (sample_of(document.source, document.tokens[:length]) for document in documents.samples)
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
