"""Passkey accuracy over a grid of lengths and depths, stored cell by cell, so that an interruption costs one cell."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from factor_search.errors import DataError, OutputError
from factor_search.factors import Factors
from factor_search.files.canonical_json import canonical_json
from factor_search.files.json_documents import read_json, write_json
from factor_search.measure.passkey import (
    Retrieval,
    accuracy_by_cell,
    as_json,
    even_depths,
    passkey_accuracy,
    passkey_samples,
)
from factor_search.model.loading import LoadedModel
from factor_search.text.samples import SampleSet, sample_of
from factor_search.text.tokens import CachedTokenizer


def passkey_grid(
    loaded: LoadedModel,
    factors: Factors,
    documents: SampleSet,
    *,
    lengths: Sequence[int],
    depths: int,
    digits: int,
    seed: int,
    record: Path,
    identity: str,
    on_cell: Callable[[int, int], None],
) -> dict[str, Any]:
    """Accuracy by length and depth, and over all.

    Args:
        loaded: the model.
        factors: in force at every length.
        documents: that hide the passkeys.
        lengths: of the samples, in tokens.
        depths: how many, evenly from 0 to 1.
        digits: of the passkeys.
        seed: of the passkeys.
        record: file in which retrievals are kept.
        identity: of everything that the retrievals depend on besides the model.
        on_cell: receives the number of finished cells, and that of all.

    Raises:
        DataError: a passkey and its question do not fit into a length.
        OutputError: the file cannot be read or written.
    """
    place = partial(passkey_samples, documents, CachedTokenizer(loaded.tokenizer), digits=digits, seed=seed)
    needles = place(lengths=sorted(set(lengths)), depths=even_depths(depths))
    whole = canonical_json([loaded.identity, identity])
    kept = _kept(record, whole)
    size = len(documents.samples)
    for start in range(len(kept), len(needles), size):
        samples = [needle.sample for needle in needles[start : start + size]]
        kept += passkey_accuracy(loaded, factors, samples)
        write_json(record, {"identity": whole, "retrievals": [vars(one) for one in kept]})
        on_cell(len(kept) // size, len(needles) // size)
    return as_json(accuracy_by_cell(needles, kept)) | {"overall": _overall(kept, size)}


def check_room(tokenizer: Any, length: int, digits: int) -> None:
    """Refuse a length that a passkey and its question do not fit into; needs no document.

    Args:
        tokenizer: of the model.
        length: of the samples, in tokens.
        digits: of the passkeys.

    Raises:
        DataError: saying how many tokens are needed.
    """
    cached = CachedTokenizer(tokenizer)
    blank = sample_of("", np.resize(np.array([*cached.prefix, 0], dtype=np.int64), length + 1))
    passkey_samples(SampleSet("held_out", (blank,)), cached, lengths=[length], depths=[0], digits=digits)


def fits(loaded: LoadedModel, documents: SampleSet, length: int, digits: int) -> bool:
    """Whether a passkey and its question fit into a length in tokens."""
    try:
        tokenizer = CachedTokenizer(loaded.tokenizer)
        passkey_samples(documents, tokenizer, lengths=[length], depths=[0.5], digits=digits)
    except DataError:
        return False
    return True


def _overall(retrievals: Sequence[Retrieval], documents: int) -> dict[str, Any]:
    """The share of all passkeys that was found; samples of one document are not independent, so it counts as one."""
    shares = [fmean(one.right for one in retrievals[number::documents]) for number in range(documents)]
    error = stdev(shares) / math.sqrt(documents) if documents > 1 else None
    return {"accuracy": fmean(shares), "standard_error": error, "documents": documents}


def _kept(record: Path, identity: str) -> list[Retrieval]:
    if not record.exists():
        return []
    document = read_json(record, OutputError)
    return [Retrieval(**one) for one in document["retrievals"]] if document["identity"] == identity else []
