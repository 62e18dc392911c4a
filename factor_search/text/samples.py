"""Documents to token samples, in three parts that share no document: search, validation, held-out."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from factor_search.errors import DataError
from factor_search.files.canonical_json import sha256_of
from factor_search.spec import DataSpec
from factor_search.text.documents import Document, documents_from_files, documents_from_hub
from factor_search.text.tokens import TokenIds

Tokenize = Callable[[str], TokenIds]
PARTS = ("search", "validation", "held_out")


@dataclass(frozen=True)
class Sample:
    """Tokens of one document (or of one piece of it)."""

    source: str
    tokens: TokenIds = field(repr=False, compare=False)
    """Token ids, int64 of shape (tokens,)."""
    sha256: str
    """Hash of the token ids."""
    scored: tuple[int, ...] | None = field(default=None, repr=False)
    """Ascending positions, from 1 on, of the tokens whose loss counts; None for all but the first."""

    def __post_init__(self) -> None:
        scored = self.scored
        if scored is None:
            return
        ascending = all(a < b for a, b in itertools.pairwise(scored))
        if not scored or not ascending or not 1 <= scored[0] <= scored[-1] < len(self.tokens):
            raise ValueError(f"scored positions must ascend within 1 to {len(self.tokens) - 1}")

    @property
    def address(self) -> str:
        """Hash of all that losses depend on: the token ids, and which of them are scored if that is not all."""
        return self.sha256 if self.scored is None else sha256_of({"tokens": self.sha256, "scored": self.scored})


@dataclass(frozen=True)
class SampleSet:
    """The samples of one part."""

    part: str
    samples: tuple[Sample, ...]

    @property
    def sha256(self) -> str:
        """Hash of the samples' addresses, in order."""
        return sha256_of([sample.address for sample in self.samples])

    def cut(self, length: int) -> "SampleSet":
        """At most the first tokens of each document; all tokens of these are scored."""
        return SampleSet(self.part, tuple(sample_of(one.source, one.tokens[:length]) for one in self.samples))


@dataclass(frozen=True)
class Samples:
    """All three parts."""

    search: SampleSet
    validation: SampleSet
    held_out: SampleSet
    held_out_text: SampleSet | None = None
    """Where the other parts score something else than plain text: the held-out documents as they are."""

    @property
    def sha256(self) -> str:
        """Hash over the three parts."""
        return sha256_of([self.search.sha256, self.validation.sha256, self.held_out.sha256])

    def cut(self, length: int) -> "Samples":
        """The three parts with at most the first tokens of each plain document."""
        return Samples(*(getattr(self, part).cut(length) for part in PARTS))


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
    """Read, tokenise and divide documents.

    The first long enough distinct documents in the order of their source are taken, and dealt to the three parts in an
    order drawn from the seed.

    Args:
        data: where documents are and how many of them play which part.
        tokenize: text to token ids.
        length: tokens a sample needs; a sample is the first ``length`` tokens of its document.
        seed: of the deal.
        whole: keep all tokens of a document (for sliding windows).
        distinct: documents with the same first so many tokens count once; None is ``length``. Jobs of different lengths
            have the same documents where they agree on it and on ``data.least_tokens``.
        watch: wraps the iteration over documents, to show progress.

    Raises:
        DataError: documents cannot be read, or too few of them are long enough; says which lengths there are.
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
    parts = _deal([pool[i] for i in order], wanted)
    if data.held_out_files is not None:
        elsewhere = documents_from_files(data.held_out_files, data.column, data.split)
        known = {_hash(sample.tokens[:distinct]) for samples in parts.values() for sample in samples}
        fresh = long_enough(watch(elsewhere), tokenize, least, data.held_out_documents, known=known)
        parts |= _deal(fresh, {"held_out": data.held_out_documents})
    samples = Samples(*(SampleSet(part, tuple(parts[part])) for part in PARTS))
    return samples.cut(length) if least > length and not whole else samples


def first_samples(
    documents: Iterable[Document], tokenize: Tokenize, length: int, count: int | None, *, whole: bool = False
) -> SampleSet:
    """The first ``count`` documents that are long enough (all of them if None), as one part.

    Raises:
        DataError: there are fewer, or none.
    """
    pool = _long_enough(documents, tokenize, length, count, distinct=length, whole=whole)
    return SampleSet("evaluation", tuple(pieces[0] for pieces in pool))


def check_vocabulary(samples: SampleSet, vocabulary: int) -> None:
    """Refuse token ids that a model has no embedding for.

    Raises:
        DataError: the tokenizer is another model's.
    """
    largest = max(int(sample.tokens.max()) for sample in samples.samples)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token id {largest}, but the model knows only {vocabulary}: it is another's"
        )


Watch = Callable[[Iterable[Document]], Iterable[Document]]


def documents_of(data: DataSpec) -> Iterator[Document]:
    """All documents of a specification's source, in its order; those held out from elsewhere are not among them.

    Raises:
        DataError: they cannot be read.
    """
    if data.files:
        return documents_from_files(data.files, data.column, data.split)
    assert data.dataset is not None
    return documents_from_hub(data.dataset, data.name, data.split, data.column)


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
    """The first ``count`` documents with at least ``length`` tokens, none twice; each as a list of its samples."""
    found: list[list[Sample]] = []
    seen, lengths, repeated = set(known), [], 0
    for document in documents:
        tokens = tokenize(document.text)
        lengths.append(len(tokens))
        if len(tokens) < length:
            continue
        pieces = []
        for piece in _pieces(document.source, tokens, length, whole=whole, cut=cut):
            # What differs only later is the same to a model for too long.
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


def _pieces(source: str, tokens: TokenIds, length: int, *, whole: bool, cut: bool) -> list[Sample]:
    if cut:
        starts = range(0, len(tokens) - length + 1, length)
        return [sample_of(f"{source}@{start}", tokens[start : start + length]) for start in starts]
    return [sample_of(source, tokens if whole else tokens[:length])]


def sample_of(source: str, tokens: TokenIds, scored: tuple[int, ...] | None = None) -> Sample:
    """A sample with its hash.

    Raises:
        ValueError: the scored positions do not ascend, or one is not that of a token with another before it.
    """
    tokens = np.ascontiguousarray(tokens)
    return Sample(source, tokens, _hash(tokens), scored)


def _hash(tokens: TokenIds) -> str:
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


def _deal(documents: Sequence[list[Sample]], wanted: dict[str, int]) -> dict[str, list[Sample]]:
    """Give each document to the part that is furthest from full; then each part takes its documents' pieces in turn."""
    hands: dict[str, list[list[Sample]]] = {part: [] for part in wanted}

    def fullness(part: str) -> tuple[float, int]:
        return sum(len(pieces) for pieces in hands[part]) / wanted[part], -wanted[part]

    for pieces in documents:
        hands[min(wanted, key=fullness)].append(pieces)
    parts = {}
    for part, count in wanted.items():
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*hands[part]))
        parts[part] = [sample for sample in in_turn if sample is not None][:count]
        if len(parts[part]) < count:
            raise DataError(
                f"{len(documents)} documents give the {part} part {len(parts[part])} of {count} samples: pieces of one "
                "document never play different parts, so give more documents or ask for fewer samples"
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
    return message
