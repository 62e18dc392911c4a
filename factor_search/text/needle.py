"""Needles in documents: a sentence with a number, and at the end a question that only this sentence answers.

Of such a sample only the tokens of the answer are scored (LongRoPE2, 2502.20082): nearly all tokens of a
plain text can be predicted from the few before them, the answer cannot. What is around the needle is the user's own
document. All is put together from token ids, so where the answer is need not be searched for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from factor_search.errors import DataError
from factor_search.files.canonical_json import sha256_of
from factor_search.text.samples import Sample, SampleSet, sample_of
from factor_search.text.tokens import TokenIds

NUMBER = " {number}"
"""Stands in a prompt for the number and the space before it."""
FARTHEST_TOKENS = 128
"""A needle is moved by at most so many tokens, and by at most a twentieth of the document, to the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The texts that are put into a document."""

    opening: str
    """Before the document; may be empty."""
    needle: str
    """Within the document; holds :data:`NUMBER` once or more."""
    question: str
    """After the document; the answer, :data:`NUMBER`, follows it and ends the sample."""


MAGIC_NUMBER = Prompt(
    opening="",
    needle="\nThe magic number is {number}. Remember it.\n",
    question="\nWhat is the magic number in this text? The magic number is",
)
"""For needle perplexity: the paper's magic number, in words of our own, and short for tokenizers over bytes."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer; :class:`factor_search.text.tokens.CachedTokenizer` has it."""

    prefix: list[int]

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        ...

    def text(self, ids: TokenIds) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True)
class Needle:
    """A document with a needle in it."""

    sample: Sample
    """Exactly as long as asked; its scored tokens are those of the answer, its last ones."""
    number: int
    depth: float
    """As asked: 0 puts the needle before the document, 1 behind it."""
    start: int
    """Position of the needle's first token."""
    stop: int
    """Position after its last."""


def place_needle(
    document: Sample, tokenizer: Tokenizer, prompt: Prompt, *, length: int, depth: float, digits: int, seed: int
) -> Needle:
    """Put a needle into the beginning of a document, and a question with its answer behind that.

    The needle stands at the end of a sentence where there is one near the depth, else between any two tokens (of a
    tokenizer over bytes even within a character).

    Args:
        document: with as many tokens as are needed; the rest is not used.
        tokenizer: that the document was tokenised with.
        prompt: the texts to put in.
        length: tokens of the sample.
        depth: share of the document before the needle, 0 to 1.
        digits: of the number.
        seed: of the number, which depends on the document, the length and the depth as well.

    Raises:
        DataError: the document is too short, or the length is for what is put in; says what is needed.
    """
    number = magic_number(document, length=length, depth=depth, digits=digits, seed=seed)
    answer = continued(tokenizer, prompt.question, NUMBER.format(number=number))
    opening = tokenizer.ids(prompt.opening) if prompt.opening else []
    needle = _needle_ids(tokenizer, prompt.needle, answer)
    question = continued(tokenizer, ".", prompt.question)
    beginning = len(tokenizer.prefix)
    if document.tokens[:beginning].tolist() != tokenizer.prefix:
        beginning = 0  # a piece from the middle of a document
    added = beginning + len(opening) + len(needle) + len(question) + len(answer)
    room = length - added
    if room < 1:
        raise DataError(
            f"{length} tokens are too few for a needle, its question and its answer, which take {added}: the length "
            f"must be at least {added + 1}"
        )
    body = document.tokens[beginning : beginning + room]
    if len(body) < room:
        raise DataError(
            f"{document.source} has {len(document.tokens)} tokens, but a sample of {length} with a needle needs "
            f"{beginning + room}"
        )
    at = _end_of_sentence_near(tokenizer, body, round(depth * room))
    parts: list[Sequence[int] | TokenIds] = [document.tokens[:beginning], opening, body[:at], needle, body[at:]]
    tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in [*parts, question, answer]])
    start = beginning + len(opening) + at
    scored = tuple(range(length - len(answer), length))
    return Needle(sample_of(document.source, tokens, scored), number, depth, start, start + len(needle))


def needle_samples(
    documents: SampleSet, tokenizer: Tokenizer, *, length: int, digits: int, repeats: int, seed: int
) -> SampleSet:
    """Samples for needle perplexity: every document once with a depth of its own, then all again for each repeat.

    Raises:
        DataError: see :func:`place_needle`.
    """
    every = [document for _ in range(repeats) for document in documents.samples]
    placed = (
        place_needle(document, tokenizer, MAGIC_NUMBER, length=length, depth=depth, digits=digits, seed=seed)
        for document, depth in zip(every, spread_depths(len(every)), strict=True)
    )
    return SampleSet(documents.part, tuple(needle.sample for needle in placed))


def spread_depths(count: int) -> list[float]:
    """Depths (k + 1/2) / count, in van der Corput's order, so that the first few are spread as well: races see these.

    (Numbers whose bits are mirrored at the point, 1/2, 1/4, 3/4, 1/8, ..., by rank.)
    """
    bits = max(count - 1, 1).bit_length()
    mirrored = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(count)]
    rank = {value: place for place, value in enumerate(sorted(mirrored))}
    return [(rank[value] + 0.5) / count for value in mirrored]


def magic_number(document: Sample, *, length: int, depth: float, digits: int, seed: int) -> int:
    """A number with so many digits that is a function of the seed, the first ``length`` tokens, depth and length."""
    content = sample_of(document.source, document.tokens[:length]).sha256
    drawn = int(sha256_of(["needle", seed, content, float(depth), length]), 16)
    least = int(10 ** (digits - 1))
    return least + drawn % (9 * least)


def continued(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Token ids of a text as it continues another.

    Some tokenizers put a space of their own before whatever they are given. It falls away with the ids of the text
    before, unless the tokenizer joins the two.
    """
    head, whole = tokenizer.ids(before), tokenizer.ids(before + text)
    return whole[len(head) :] if whole[: len(head)] == head else tokenizer.ids(text)


def _needle_ids(tokenizer: Tokenizer, needle: str, number: list[int]) -> list[int]:
    """A needle's token ids; its numbers have those of the answer, which can be copied from it."""
    first, *others = needle.split(NUMBER)
    ids = continued(tokenizer, ".", first)
    for text in others:
        ids += [*number, *continued(tokenizer, "0", text)]
    return ids


def _end_of_sentence_near(tokenizer: Tokenizer, body: TokenIds, wanted: int) -> int:
    """The end of a sentence closest to a number of tokens, or that number if none is near."""
    farthest = min(FARTHEST_TOKENS, len(body) // 20)
    for distance in range(farthest + 1):
        for at in (wanted - distance, wanted + distance):
            if 0 <= at <= len(body) and _ends_sentence(tokenizer, body, at):
                return at
    return wanted


def _ends_sentence(tokenizer: Tokenizer, body: TokenIds, at: int) -> bool:
    """Whether a sentence, or a paragraph, ends before the token at a position."""
    if at in (0, len(body)):
        return True
    before = tokenizer.text(body[at - 1 : at])
    after = tokenizer.text(body[at - 1 : at + 1])[len(before) :]
    if before.endswith(("\n\n", "。", "！", "？")) or (before.endswith("\n") and after.startswith("\n")):
        return True
    closed = before.rstrip().endswith((".", "!", "?", '."', '?"', ".”", "?”", ".)"))
    return closed and (before[-1].isspace() or after[:1].isspace())
