"""Passkey retrieval measures whether a model retrieves a number from a text, by depth and length (2305.16300)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.files.canonical_json import finite
from factor_search.measure.statistics import summarise
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel
from factor_search.model.losses import predict
from factor_search.text.needle import Needle, Prompt, Tokenizer, place_needle
from factor_search.text.samples import Sample, SampleSet

DIGITS = 5
PASSKEY = Prompt(
    opening="A pass key is hidden in the long text that follows. Find it and keep it in mind.\n",
    needle="\nThe pass key is {number}. Keep it in mind: {number} is the pass key.\n",
    question="\nWhat is the pass key that was hidden in the text? The pass key is",
)
"""The task of the paper, reworded; the irrelevant text is the user's document."""


@dataclass(frozen=True)
class Retrieval:
    """A model's answer to one sample."""

    right: bool
    """Whether every token of the answer is the most likely one given the true tokens before it.

    This is equivalent to greedy decoding: up to its first mistake, greedy decoding sees the true tokens too, and one
    mistake makes the answer wrong.
    """
    loss: float
    """Mean loss over the tokens of the answer, nats per token."""
    tokens: int
    """Tokens of the answer."""


@dataclass(frozen=True)
class Cell:
    """The accuracy at one length and depth, over documents."""

    length: int
    """Tokens of the samples."""
    depth: float
    accuracy: float
    """Share of samples that are right, 0 to 1."""
    standard_error: float
    """Standard error of the accuracy over documents; NaN for a single document."""
    count: int
    """Number of samples, one per document."""
    answer_perplexity: float
    """exp of the mean loss per token of the answers."""


def passkey_samples(
    documents: SampleSet,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    digits: int = DIGITS,
    seed: int = 0,
) -> list[Needle]:
    """Build a sample of every document at every length and depth, ordered by length, depth and document.

    Raises:
        DataError: see :func:`factor_search.text.needle.place_needle`.
    """
    return [
        place_needle(document, tokenizer, PASSKEY, length=length, depth=depth, digits=digits, seed=seed)
        for length in lengths
        for depth in depths
        for document in documents.samples
    ]


def even_depths(count: int) -> list[float]:
    """Return evenly spaced depths from 0 to 1, or 0.5 if there is only one."""
    return [number / (count - 1) for number in range(count)] if count > 1 else [0.5]


@torch.inference_mode()
def passkey_accuracy(loaded: LoadedModel, factors: Factors, samples: Sequence[Sample]) -> list[Retrieval]:
    """Measure whether the model with the given factors retrieves the answer of each sample.

    Samples are evaluated one at a time, and logits are computed for the answer only. An answer whose loss is not finite
    is wrong.

    Args:
        loaded: the model.
        factors: the candidate, used at every length.
        samples: samples whose scored tokens are the answer.

    Raises:
        DataError: a sample has no scored tokens.
    """
    retrievals = []
    with Injector(loaded.model, loaded.geometry) as injector, injector.using([factors]):
        for sample in samples:
            if sample.scored is None:
                raise DataError(f"{sample.source} has no answer: its scored tokens are not given")
            ids = torch.from_numpy(sample.tokens[: sample.scored[-1] + 1])[None].to(loaded.model.device)
            predicted = predict(loaded.model, ids, sample.scored)
            loss = predicted.losses.double().mean().item()
            right = bool(predicted.hits.all()) and math.isfinite(loss)
            retrievals.append(Retrieval(right, loss, len(sample.scored)))
    return retrievals


def accuracy_by_cell(needles: Sequence[Needle], retrievals: Sequence[Retrieval]) -> list[Cell]:
    """Compute the accuracy for each length and depth, in the order of the needles."""
    cells: dict[tuple[int, float], list[Retrieval]] = {}
    for needle, retrieval in zip(needles, retrievals, strict=True):
        cells.setdefault((len(needle.sample.tokens), needle.depth), []).append(retrieval)
    return [_cell(length, depth, answers) for (length, depth), answers in cells.items()]


def _cell(length: int, depth: float, answers: Sequence[Retrieval]) -> Cell:
    count = len(answers)
    accuracy = sum(answer.right for answer in answers) / count
    # standard deviation of ones and zeros (n - 1 in the denominator) over the root of n
    error = math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else math.nan
    summary = summarise([answer.loss for answer in answers], [answer.tokens for answer in answers])
    return Cell(length, depth, accuracy, error, count, summary.perplexity)


def as_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return a JSON document with lengths, depths and cells; a number that JSON cannot express is null."""
    return {
        "lengths": list(dict.fromkeys(cell.length for cell in cells)),
        "depths": list(dict.fromkeys(cell.depth for cell in cells)),
        "cells": [
            {
                "length": cell.length,
                "depth": cell.depth,
                "accuracy": cell.accuracy,
                "standard_error": finite(cell.standard_error),
                "count": cell.count,
                "answer_perplexity": finite(cell.answer_perplexity),
            }
            for cell in cells
        ],
    }


def table(cells: Sequence[Cell]) -> str:
    """Format the accuracies for a terminal: a line for each length, a column for each depth."""
    depths = dict.fromkeys(cell.depth for cell in cells)
    by_place = {(cell.length, cell.depth): cell for cell in cells}
    lines = [f"{'tokens':>10}" + "".join(f"{f'depth {depth:.0%}':>16}" for depth in depths)]
    for length in dict.fromkeys(cell.length for cell in cells):
        row = (by_place[length, depth] for depth in depths)
        lines.append(f"{length:>10,}" + "".join(f"{_accuracy(cell):>16}" for cell in row))
    count = cells[0].count
    return "\n".join(
        [*lines, f"share of passkeys retrieved ± standard error, {count} document{'s' * (count != 1)} each"]
    )


def _accuracy(cell: Cell) -> str:
    error = "" if math.isnan(cell.standard_error) else f" ± {cell.standard_error:.3f}"
    return f"{cell.accuracy:.3f}{error}"
