"""Splits documents into token samples for search, validation and held-out measurement, without overlap."""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from factor_search.errors import DataError
from factor_search.files.canonical_json import sha256_of
from factor_search.spec import DataSpec
from factor_search.text.documents import Document, documents_from_files, documents_from_hub
from factor_search.text.tokens import TokenIds, first_tokens

PARTS = ("search", "validation", "held_out")


@dataclass(frozen=True)
class Sample:
    """The tokens of one document, or of one piece of it."""

    source: str
    tokens: TokenIds = field(repr=False, compare=False)
    """Token ids, int64 of shape (tokens,)."""
    sha256: str
    """SHA-256 of the token ids."""
    scored: tuple[int, ...] | None = field(default=None, repr=False)
    """Positions of the tokens that are scored, ascending from 1 on; None for all but the first token and the prefix."""
    prefix: int = 0
    """How many of the first tokens are those that the tokenizer puts before every text (BOS)."""

    def __post_init__(self) -> None:
        scored = self.scored
        if scored is None:
            return
        ascending = all(a < b for a, b in itertools.pairwise(scored))
        if not scored or not ascending or not 1 <= scored[0] <= scored[-1] < len(self.tokens):
            raise ValueError(f"scored positions must ascend within 1 to {len(self.tokens) - 1}")

    @property
    def first_scored(self) -> int:
        """The first position that may be scored: behind the prefix, and behind a token that predicts it."""
        return max(1, self.prefix)

    @property
    def address(self) -> str:
        """The hash of what losses depend on: the token ids, and the scored positions if these are not all."""
        if self.scored is not None:
            return sha256_of({"tokens": self.sha256, "scored": self.scored})
        return self.sha256 if self.prefix < 2 else sha256_of({"tokens": self.sha256, "prefix": self.prefix})


@dataclass(frozen=True)
class SampleSet:
    """The samples of one part: search, validation or held_out."""

    part: str
    samples: tuple[Sample, ...]

    @property
    def sha256(self) -> str:
        """The hash of the samples' addresses, in order."""
        return sha256_of([sample.address for sample in self.samples])

    def cut(self, length: int) -> "SampleSet":
        """Cut each document to its first ``length`` tokens, all of which are scored."""
        cut = (sample_of(one.source, one.tokens[:length], prefix=one.prefix) for one in self.samples)
        return SampleSet(self.part, tuple(cut))


@dataclass(frozen=True)
class Samples:
    """The samples of the three parts."""

    search: SampleSet
    validation: SampleSet
    held_out: SampleSet
    held_out_text: SampleSet | None = None
    """The plain text of the held-out documents, where the other parts score needles."""

    @property
    def sha256(self) -> str:
        """The hash over the three parts."""
        return sha256_of([self.search.sha256, self.validation.sha256, self.held_out.sha256])

    def cut(self, length: int) -> "Samples":
        """Cut each document of the three parts to its first ``length`` tokens."""
        return Samples(*(getattr(self, part).cut(length) for part in PARTS))


class Tokenize(Protocol):
    """Converts documents to token ids; :class:`factor_search.text.tokens.CachedTokenizer` implements it."""

    prefix: list[int]
    """Special tokens with which every document begins."""

    def __call__(self, text: str) -> TokenIds:
        """Return the token ids of a document, the prefix included."""
        ...


def load_samples(
    data: DataSpec,
    tokenize: Tokenize,
    length: int,
    *,
    seed: int,
    whole: bool = False,
    distinct: int | None = None,
    watch: "Watch | None" = None,
) -> Samples:
    """Read and tokenise documents, and split them into search, validation and held-out samples.

    The first distinct documents that are long enough are used, and split in an order that the seed determines.

    Args:
        data: where the documents are, and how many to use for what.
        tokenize: converts text to token ids.
        length: tokens of a sample, which are the first tokens of its document.
        seed: determines the split.
        whole: keep all tokens of each document (for sliding windows).
        distinct: documents with the same first so many tokens count once; None is ``length``. Jobs of different lengths
            use the same documents if they agree on this and on ``data.least_tokens``.
        watch: wraps the iteration over documents, to show progress.

    Raises:
        DataError: documents cannot be read, or too few of them are long enough; the message gives their lengths.
    """
    least, distinct = data.least_tokens or length, distinct or length
    if least < length:
        raise DataError(f"data.least_tokens is {least}, but {length} tokens of each document are to be read")
    watch = watch or (lambda documents: documents)
    wanted = {"search": data.search_documents, "validation": data.validation_documents}
    if data.held_out_files is None:
        wanted["held_out"] = data.held_out_documents
    long_enough = partial(_long_enough, distinct=distinct, whole=whole, cut=data.cut_long_documents)
    pool = long_enough(watch(documents_of(data)), tokenize, least, sum(wanted.values()))
    order = np.random.default_rng([seed, len(pool)]).permutation(len(pool))
    parts = _split([pool[i] for i in order], wanted)
    if data.held_out_files is not None:
        elsewhere = documents_from_files(data.held_out_files, data.column, data.split)
        known = {_hash(sample.tokens[:distinct]) for samples in parts.values() for sample in samples}
        fresh = long_enough(watch(elsewhere), tokenize, least, data.held_out_documents, known=known)
        parts |= _split(fresh, {"held_out": data.held_out_documents})
    samples = Samples(*(SampleSet(part, tuple(parts[part])) for part in PARTS))
    return samples.cut(length) if least > length and not whole else samples


def distinct_tokens(data: DataSpec, original_length: int) -> int | None:
    """Return the number of first tokens in which documents must differ to be distinct; None is the target length.

    Jobs of different target lengths on the same documents need the same number, at most the original length.

    Args:
        data: where the documents are, and how many tokens they need.
        original_length: original length of the model in tokens.
    """
    return None if data.least_tokens is None else min(original_length, data.least_tokens)


def first_samples(
    documents: Iterable[Document], tokenize: Tokenize, length: int, count: int | None, *, whole: bool = False
) -> SampleSet:
    """Return the first ``count`` documents that are long enough, or all of them if None, as one set of samples.

    Raises:
        DataError: there are fewer than ``count``, or none.
    """
    pool = _long_enough(documents, tokenize, length, count, distinct=length, whole=whole)
    return SampleSet("evaluation", tuple(pieces[0] for pieces in pool))


def samples_of_addresses(
    documents: Iterable[Document],
    tokenize: Tokenize,
    addresses: Collection[str],
    data: DataSpec,
    length: int,
    *,
    whole: bool = False,
    scored: int | None = None,
) -> dict[str, Sample]:
    """Find the samples with given addresses; the documents are read until all are found.

    Args:
        documents: where to look.
        tokenize: converts text to token ids.
        addresses: of the plain text of samples (see :attr:`Sample.address`).
        data: how the samples were made: ``least_tokens`` and ``cut_long_documents``.
        length: tokens of a sample.
        whole: whether the samples have all tokens of their documents (for sliding windows).
        scored: the samples were cut to this many tokens afterwards; None if they were not.

    Returns:
        Those that were found, by address.

    Raises:
        DataError: a document cannot be read.
    """
    least, cut, found = data.least_tokens or length, data.cut_long_documents, dict[str, Sample]()
    shortened = scored if whole else length
    for document in documents:
        tokens = tokenize(document.text) if whole or cut else first_tokens(tokenize, document.text, least)
        if len(tokens) < least:
            continue
        pieces = SampleSet("", tuple(_pieces(document.source, tokens, tokenize.prefix, least, whole=whole, cut=cut)))
        for sample in (pieces if shortened is None else pieces.cut(shortened)).samples:
            if sample.address in addresses:
                found.setdefault(sample.address, sample)
        if len(found) == len(addresses):
            break
    return found


def check_vocabulary(samples: SampleSet, vocabulary: int) -> None:
    """Check that a model has an embedding for every token id.

    Raises:
        DataError: it has not, so the tokenizer belongs to another model.
    """
    largest = max(int(sample.tokens.max()) for sample in samples.samples)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token id {largest}, but the model knows only {vocabulary}: use the model's own "
            "tokenizer"
        )


Watch = Callable[[Iterable[Document]], Iterable[Document]]


def documents_of(data: DataSpec) -> Iterator[Document]:
    """Iterate over the documents of ``data.files`` or ``data.dataset`` in order, without those of ``held_out_files``.

    Raises:
        DataError: a document cannot be read.
    """
    if data.files:
        return documents_from_files(data.files, data.column, data.split)
    assert data.dataset is not None
    return documents_from_hub(data.dataset, data.name, data.split, data.column, data.revision)


def _long_enough(
    documents: Iterable[Document],
    tokenize: Tokenize,
    length: int,
    count: int | None,
    *,
    distinct: int,
    whole: bool = False,
    cut: bool = False,
    known: Iterable[str] = (),
) -> list[list[Sample]]:
    """Return the first ``count`` distinct documents with at least ``length`` tokens, each as a list of its samples."""
    if length <= len(tokenize.prefix):
        raise DataError(f"{length} tokens are too few: the tokenizer puts {len(tokenize.prefix)} before every text")
    found: list[list[Sample]] = []
    seen, lengths, repeated = set(known), [], 0
    for document in documents:
        tokens = tokenize(document.text) if whole or cut else first_tokens(tokenize, document.text, length)
        lengths.append(len(tokens))
        if len(tokens) < length:
            continue
        pieces = []
        for piece in _pieces(document.source, tokens, tokenize.prefix, length, whole=whole, cut=cut):
            # Documents that differ only behind these tokens are the same text to a search.
            identity = _hash(piece.tokens[:distinct])
            if identity not in seen:
                seen.add(identity)
                pieces.append(piece)
        if not pieces:
            repeated += 1
            continue
        found.append(pieces)
        if len(found) == count:
            break
    if not found or (count is not None and len(found) < count and not cut):
        raise DataError(_too_few(len(found), count or 1, length, lengths, repeated, cut))
    return found


def _pieces(
    source: str, tokens: TokenIds, prefix: Sequence[int], length: int, *, whole: bool, cut: bool
) -> list[Sample]:
    """Return a document's samples; every piece begins with the prefix, which counts in its length."""
    if not cut:
        return [sample_of(source, tokens if whole else tokens[:length], prefix=len(prefix))]
    beginning, text = np.split(tokens, [len(prefix)])
    room = length - len(prefix)
    return [
        sample_of(f"{source}@{start}", np.concatenate([beginning, text[start : start + room]]), prefix=len(prefix))
        for start in range(0, len(text) - room + 1, room)
    ]


def sample_of(source: str, tokens: TokenIds, scored: tuple[int, ...] | None = None, *, prefix: int = 0) -> Sample:
    """Build a sample with its hash.

    Raises:
        ValueError: the scored positions do not ascend, or are not within 1 and the number of tokens.
    """
    tokens = np.ascontiguousarray(tokens)
    return Sample(source, tokens, _hash(tokens), scored, prefix)


def _hash(tokens: TokenIds) -> str:
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


def _split(documents: Sequence[list[Sample]], wanted: dict[str, int]) -> dict[str, list[Sample]]:
    """Assign each document to the part that is furthest from complete; a part alternates between its documents."""
    assigned: dict[str, list[list[Sample]]] = {part: [] for part in wanted}

    def fullness(part: str) -> tuple[float, int]:
        return sum(len(pieces) for pieces in assigned[part]) / wanted[part], -wanted[part]

    for pieces in documents:
        assigned[min(wanted, key=fullness)].append(pieces)
    parts = {}
    for part, count in wanted.items():
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*assigned[part]))
        parts[part] = [sample for sample in in_turn if sample is not None][:count]
        if len(parts[part]) < count:
            raise DataError(
                f"{len(documents)} documents give {len(parts[part])} of {count} {part} samples. All pieces of one "
                "document are used for the same purpose: give more documents, or ask for fewer samples"
            )
    return parts


def _too_few(found: int, count: int, length: int, lengths: list[int], repeated: int, cut: bool) -> str:
    if not lengths:
        return "there are no documents"
    sizes = sorted(lengths, reverse=True)
    shown = ", ".join(str(size) for size in sizes[:8]) + (", ..." if len(sizes) > 8 else "")
    message = f"{found} of the {count} documents needed have {length} tokens or more"
    message += f" (token counts of the {len(sizes)} read: {shown})"
    if repeated:
        message += f"; {repeated} repeat another and do not count"
    if found and not cut and sizes[0] >= 2 * length:
        message += "; lower the *_documents, add documents, or set data.cut_long_documents to true"
    else:
        message += "; give more or longer documents"
    return message
