"""Measures passkey accuracy over a grid of lengths and depths, and stores each cell, so it can be interrupted."""

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
    """Measure the accuracy by length and depth, and over all samples.

    Args:
        loaded: the model.
        factors: the factors, used at every length.
        documents: documents into which the passkeys are inserted.
        lengths: lengths of the samples in tokens.
        depths: number of depths, evenly spaced from 0 to 1.
        digits: digits of the passkeys.
        seed: determines the passkeys.
        record: file that stores the retrievals.
        identity: identifies everything that the retrievals depend on besides the model.
        on_cell: called with the number of finished cells and of all cells.

    Raises:
        DataError: a passkey and its question do not fit into a length.
        OutputError: the file cannot be read or written.
    """
    place = partial(passkey_samples, documents, CachedTokenizer(loaded.tokenizer), digits=digits, seed=seed)
    needles = place(lengths=sorted(set(lengths)), depths=even_depths(depths))
    whole = canonical_json([loaded.identity | loaded.environment, identity])
    kept = _kept(record, (whole, canonical_json([loaded.identity, identity])))
    size = len(documents.samples)
    for start in range(len(kept), len(needles), size):
        samples = [needle.sample for needle in needles[start : start + size]]
        kept += passkey_accuracy(loaded, factors, samples)
        loaded.files.check_unchanged()
        write_json(record, {"identity": whole, "retrievals": [vars(one) for one in kept]})
        on_cell(len(kept) // size, len(needles) // size)
    return as_json(accuracy_by_cell(needles, kept)) | {"overall": _overall(kept, size)}


def check_room(tokenizer: Any, length: int, digits: int) -> None:
    """Check that a passkey and its question fit into a length; this needs no document.

    Args:
        tokenizer: tokenizer of the model.
        length: length of the samples in tokens.
        digits: digits of the passkeys.

    Raises:
        DataError: the length is too short; the message gives the tokens needed.
    """
    cached = CachedTokenizer(tokenizer)
    blank = sample_of("", np.resize(np.array([*cached.prefix, 0], dtype=np.int64), length + 1))
    passkey_samples(SampleSet("held_out", (blank,)), cached, lengths=[length], depths=[0], digits=digits)


def fits(loaded: LoadedModel, documents: SampleSet, length: int, digits: int) -> bool:
    """Return whether a passkey and its question fit into a length in tokens."""
    try:
        tokenizer = CachedTokenizer(loaded.tokenizer)
        passkey_samples(documents, tokenizer, lengths=[length], depths=[0.5], digits=digits)
    except DataError:
        return False
    return True


def _overall(retrievals: Sequence[Retrieval], documents: int) -> dict[str, Any]:
    """Compute the share of all passkeys that were retrieved; the standard error is over documents, not over samples."""
    shares = [fmean(one.right for one in retrievals[number::documents]) for number in range(documents)]
    error = stdev(shares) / math.sqrt(documents) if documents > 1 else None
    return {"accuracy": fmean(shares), "standard_error": error, "documents": documents}


def _kept(record: Path, identities: Sequence[str]) -> list[Retrieval]:
    """Return the retrievals of a file with one of the identities, the second of which earlier versions wrote."""
    if not record.exists():
        return []
    document = read_json(record, OutputError, own=True)
    return [Retrieval(**one) for one in document["retrievals"]] if document["identity"] in identities else []
