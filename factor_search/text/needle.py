"""Inserts needles into documents: a sentence with a number, and at the end a question that only it answers.

Only the tokens of the answer are scored (LongRoPE2, 2502.20082). Nearly all tokens of a plain text can be predicted
from the few before them, but the answer cannot. The text around the needle is the user's own document. Samples are
built from token ids, so the position of the answer is known exactly.
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
"""Placeholder in a prompt for the number and the space before it."""
FARTHEST_TOKENS = 128
"""A needle is moved to the end of a sentence by at most this many tokens and at most 1/20 of the document."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The texts that are added to a document."""

    opening: str
    """Text before the document; may be empty."""
    needle: str
    """Text within the document; contains :data:`NUMBER` at least once."""
    question: str
    """Text after the document; the answer, :data:`NUMBER`, follows it and ends the sample."""


MAGIC_NUMBER = Prompt(
    opening="",
    needle="\nThe magic number is {number}. Remember it.\n",
    question="\nWhat is the magic number in this text? The magic number is",
)
"""The prompt of needle perplexity: the task of the paper, worded briefly to suit byte tokenizers."""


class Tokenizer(Protocol):
    """The interface of a tokenizer, which :class:`factor_search.text.tokens.CachedTokenizer` implements."""

    prefix: list[int]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a piece of text."""
        ...

    def text(self, ids: TokenIds) -> str:
        """Return the text of token ids."""
        ...


@dataclass(frozen=True)
class Needle:
    """A document with an inserted needle."""

    sample: Sample
    """A sample of exactly the requested length; its scored tokens are the answer, which ends it."""
    number: int
    depth: float
    """The requested depth: 0 puts the needle before the document, 1 behind it."""
    start: int
    """Position of the first token of the needle."""
    stop: int
    """Position behind the last token of the needle."""


def place_needle(
    document: Sample, tokenizer: Tokenizer, prompt: Prompt, *, length: int, depth: float, digits: int, seed: int
) -> Needle:
    """Insert a needle into the first tokens of a document, and append a question with its answer.

    The needle is placed at the end of a sentence near the depth. If there is none, it is placed between two tokens,
    which for a byte tokenizer may be within a character.

    The sample begins with the tokenizer's prefix.

    Args:
        document: a document that is long enough; tokens that are not needed are ignored.
        tokenizer: the tokenizer of the document.
        prompt: the texts to insert.
        length: tokens of the sample.
        depth: share of the document before the needle, 0 to 1.
        digits: digits of the number.
        seed: determines the number, together with the document, the length and the depth.

    Raises:
        DataError: the document or the length is too short; the message gives the tokens needed.
    """
    number = magic_number(document, length=length, depth=depth, digits=digits, seed=seed)
    answer = continued(tokenizer, prompt.question, NUMBER.format(number=number))
    opening = tokenizer.ids(prompt.opening) if prompt.opening else []
    needle = _needle_ids(tokenizer, prompt.needle, answer)
    question = continued(tokenizer, ".", prompt.question)
    beginning = len(tokenizer.prefix)
    begins = document.tokens[:beginning].tolist() == tokenizer.prefix
    text = document.tokens[beginning if begins else 0 :]
    added = beginning + len(opening) + len(needle) + len(question) + len(answer)
    room = length - added
    if room < 1:
        raise DataError(
            f"{length} tokens are too few for a needle, its question and its answer, which take {added}: the length "
            f"must be at least {added + 1} tokens"
        )
    body = text[:room]
    if len(body) < room:
        raise DataError(
            f"{document.source} has {len(document.tokens)} tokens, but a sample of {length} with a needle needs "
            f"{len(document.tokens) - len(text) + room}"
        )
    at = end_of_sentence_near(tokenizer, body, round(depth * room))
    parts: list[Sequence[int] | TokenIds] = [tokenizer.prefix, opening, body[:at], needle, body[at:]]
    tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in [*parts, question, answer]])
    start = beginning + len(opening) + at
    scored = tuple(range(length - len(answer), length))
    return Needle(sample_of(document.source, tokens, scored), number, depth, start, start + len(needle))


def needle_samples(
    documents: SampleSet, tokenizer: Tokenizer, *, length: int, digits: int, repeats: int, seed: int
) -> SampleSet:
    """Build the samples of needle perplexity: all documents once per repeat, each sample with another depth.

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
    """Return the depths (k + 1/2) / count in the order of the van der Corput sequence (1/2, 1/4, 3/4, 1/8, ...).

    In this order the first few depths are spread too. A race stops candidates on the first few samples.
    """
    bits = max(count - 1, 1).bit_length()
    mirrored = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(count)]
    rank = {value: place for place, value in enumerate(sorted(mirrored))}
    return [(rank[value] + 0.5) / count for value in mirrored]


def magic_number(document: Sample, *, length: int, depth: float, digits: int, seed: int) -> int:
    """Derive a number with so many digits from the seed, the first ``length`` tokens, the depth and the length."""
    content = sample_of(document.source, document.tokens[:length]).sha256
    drawn = int(sha256_of(["needle", seed, content, float(depth), length]), 16)
    least = int(10 ** (digits - 1))
    return least + drawn % (9 * least)


def continued(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Return the token ids of a text that continues another text.

    Some tokenizers add a space before every input. Tokenising both texts and removing the ids of the first one removes
    that space, unless the tokenizer joins the two texts.
    """
    head, whole = tokenizer.ids(before), tokenizer.ids(before + text)
    return whole[len(head) :] if whole[: len(head)] == head else tokenizer.ids(text)


def _needle_ids(tokenizer: Tokenizer, needle: str, number: list[int]) -> list[int]:
    """Return a needle's token ids; its numbers have the same ids as the answer, so that the model can copy them."""
    first, *others = needle.split(NUMBER)
    ids = continued(tokenizer, ".", first)
    for text in others:
        ids += [*number, *continued(tokenizer, "0", text)]
    return ids


def end_of_sentence_near(tokenizer: Tokenizer, body: TokenIds, wanted: int) -> int:
    """Return the end of a sentence that is closest to a number of tokens, or that number if none is near."""
    farthest = min(FARTHEST_TOKENS, len(body) // 20)
    for distance in range(farthest + 1):
        for at in (wanted - distance, wanted + distance):
            if 0 <= at <= len(body) and _ends_sentence(tokenizer, body, at):
                return at
    return wanted


def _ends_sentence(tokenizer: Tokenizer, body: TokenIds, at: int) -> bool:
    """Return whether a sentence or a paragraph ends before the token at a position."""
    if at in (0, len(body)):
        return True
    before = tokenizer.text(body[at - 1 : at])
    after = tokenizer.text(body[at - 1 : at + 1])[len(before) :]
    if before.endswith(("\n\n", "。", "！", "？")) or (before.endswith("\n") and after.startswith("\n")):
        return True
    closed = before.rstrip().endswith((".", "!", "?", '."', '?"', ".”", "?”", ".)"))
    return closed and (before[-1].isspace() or after[:1].isspace())
