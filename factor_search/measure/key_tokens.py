"""Key tokens: those that a model predicts much better from a long text than from the few tokens before them.

Nearly all tokens of a text can be predicted from what is near, so the mean over all of them hardly shows whether a
model reads far. LongPPL (2410.23771) averages over key tokens alone, which a model that reads long texts chooses.
"""

import numpy as np

from factor_search.errors import DataError, OutputError
from factor_search.files.atomic import write_atomically
from factor_search.files.cache import cache_folder
from factor_search.files.canonical_json import canonical_json, sha256_of
from factor_search.files.json_documents import read_json
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.methods import untouched
from factor_search.model.loading import LoadedModel
from factor_search.text.samples import Sample, SampleSet, sample_of
from factor_search.text.tokens import CachedTokenizer

GAIN = 2.0
"""Nats that the long context must gain: alpha of equation 5."""
LIKELY = -2.0
"""Least log-likelihood from the long context: beta of equation 5; tokens that nobody can predict are none."""
NEAR = 4096
"""Tokens of the short context, as in the paper; half of the text if that is fewer."""
OVERLAP = 4
"""The window of the short context moves by its length divided by this."""


def with_key_tokens(documents: SampleSet, chooser: LoadedModel, near: int | None = None) -> SampleSet:
    """Return the documents with their key tokens as the scored ones; those without any are left out.

    The positions are kept in the cache, by the chooser's content and the tokens.

    Args:
        documents: all of the same length in tokens.
        chooser: a model that reads texts of this length, with the tokenizer of the documents.
        near: tokens of the short context; None is 4,096, or half of the text if that is fewer.

    Raises:
        DataError: no document has a key token, the short context is not shorter than the text, or the chooser does not
            read so far.
    """
    length = max(len(sample.tokens) for sample in documents.samples)
    near = min(NEAR, length // 2) if near is None else near
    if not 2 <= near < length:
        raise DataError(f"a short context of {near} tokens is not within 2 and the {length} of the text")
    reads = max(chooser.geometry.configured_length, chooser.geometry.original_length)
    if reads < length:
        raise DataError(
            f"the model that chooses key tokens reads {reads:,} tokens, but the texts have {length:,}: name one that "
            "reads farther"
        )
    kept = []
    for sample in documents.samples:
        positions = _kept(sample, chooser, near)
        if positions:
            kept.append(sample_of(sample.source, sample.tokens, positions, prefix=sample.prefix))
    if not kept:
        raise DataError(
            f"no token of {len(documents.samples)} documents is predicted better by {GAIN:g} nats from {length} tokens "
            f"than from {near}: use longer documents, or a model that reads farther to choose the tokens"
        )
    return SampleSet(documents.part, tuple(kept))


def check_same_tokens(documents: SampleSet, tokenizer: CachedTokenizer, other: CachedTokenizer) -> None:
    """Check that two tokenizers give documents the same tokens, as far as their first thousand.

    Raises:
        DataError: they do not.
    """
    for sample in documents.samples:
        text = tokenizer.text(sample.tokens[sample.prefix : sample.prefix + 1000])
        if tokenizer.prefix != other.prefix or tokenizer.ids(text) != other.ids(text):
            raise DataError(
                "the model that chooses key tokens has another tokenizer, and so other tokens: name one of the same "
                "family, or the model itself after it was fine-tuned on long texts"
            )


def key_positions(long: np.ndarray, short: np.ndarray, first: int) -> tuple[int, ...]:
    """Return the positions of key tokens.

    Args:
        long: loss of each token from the whole text before it, nats; the first entry is that of token ``first``.
        short: the same from the near tokens alone.
        first: position of the first token that has a loss.
    """
    chosen = (short - long > GAIN) & (-long > LIKELY)
    return tuple(int(place) + first for place in np.flatnonzero(chosen))


def _kept(sample: Sample, chooser: LoadedModel, near: int) -> tuple[int, ...]:
    identity = chooser.identity | chooser.environment
    file = cache_folder("key-tokens") / f"{sha256_of([identity, sample.address, near, GAIN, LIKELY])}.json"
    if file.exists():
        return tuple(read_json(file, OutputError, own=True))
    positions = _chosen(sample, chooser, near)
    write_atomically(file, canonical_json(positions).encode())
    return positions


def _chosen(sample: Sample, chooser: LoadedModel, near: int) -> tuple[int, ...]:
    length = len(sample.tokens)
    factors = untouched(chooser.geometry, length)
    with LocalEvaluator(chooser, length) as evaluator:
        long = evaluator.token_losses(factors, sample).numpy()
    with LocalEvaluator(chooser, near, max(near // OVERLAP, 1)) as evaluator:
        short = evaluator.token_losses(factors, sample).numpy()
    if not (np.isfinite(long).all() and np.isfinite(short).all()):
        raise DataError(f"the model that chooses key tokens has losses that are not finite on {sample.source}")
    return key_positions(long, short, sample.first_scored)
