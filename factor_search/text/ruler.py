"""Builds the synthetic tasks of RULER (2404.06654) in documents of the user, worded anew.

Facts are inserted into a document, and a question at its end asks for them; or the text is a list of words, and the
question asks for the frequent ones. A prompt and the room for its answer have exactly the length that is asked for.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from factor_search.errors import DataError
from factor_search.files.canonical_json import sha256_of
from factor_search.spec import RulerTask
from factor_search.text.needle import Tokenizer, continued, end_of_sentence_near
from factor_search.text.samples import Sample, sample_of
from factor_search.text.tokens import TokenIds

CHAINED = 5
"""Variables in a chain: the first has the value, and four assignments hand it on, as in RULER."""
FACTS = 4
"""Keys, or values of one key, in the tasks that have several."""
COMMON, OFTEN, SELDOM = 10, 30, 3
"""Words to be found, and how often they and the others occur in a list of RULER's first length, 4,096 tokens."""
FREQUENT = 3
DIGITS = 7
SPARE_TOKENS = 16
"""Room behind an answer, for a model that begins with another word or two."""
LETTERS = ("bcdfghjklmnprstvz", "aeiou")


class ChatTokenizer(Tokenizer, Protocol):
    """The tokenizer of a prompt, which may be the message of a user."""

    def chat(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and behind a user's text: a message's beginning, and the answer's."""
        ...


@dataclass(frozen=True)
class Fact:
    """Something that the answer must name."""

    text: str
    depth: float | None
    """Share of the document before it; None where the whole text tells it."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what its answer must name."""

    task: RulerTask
    source: str
    length: int
    """Tokens of the prompt and of the room for the answer."""
    tokens: TokenIds
    """The prompt: int64 of shape (tokens,)."""
    facts: tuple[Fact, ...]

    @property
    def room(self) -> int:
        """Tokens that an answer may have."""
        return self.length - len(self.tokens)

    def found(self, answer: str) -> list[bool]:
        """Which of the facts an answer names, as whole words and whatever the case."""
        return [bool(re.search(rf"(?<!\w){re.escape(fact.text)}(?!\w)", answer, re.IGNORECASE)) for fact in self.facts]


@dataclass(frozen=True)
class _Draw:
    """What a task is drawn from."""

    rng: random.Random
    depth: float
    """Of the fact that is asked for, where it is one."""
    own_words: Callable[[], list[str]]
    """Words of the document."""


@dataclass(frozen=True)
class _Task:
    """The texts of one task in one document."""

    opening: str
    inserted: tuple[tuple[float, str], ...]
    """Depths and texts, in order."""
    question: str
    facts: tuple[Fact, ...]
    listed: "Callable[[int], str] | None" = None
    """Makes a text of about so many characters that takes the place of the document; None keeps the document."""


def questions(
    documents: Sequence[Sample],
    tokenizer: ChatTokenizer,
    *,
    tasks: Sequence[RulerTask],
    lengths: Sequence[int],
    depths: Sequence[float],
    seed: int,
    chat: bool = False,
) -> list[Question]:
    """Build a question of each task for every document, at every length, and where a single fact is asked for, depth.

    Args:
        documents: each with as many tokens as the longest length.
        tokenizer: of the documents.
        tasks: names among :data:`TASKS`.
        lengths: tokens of prompt and answer.
        depths: shares of a document before the fact that is asked for, in the tasks that ask for one.
        seed: determines the facts, together with the document, the length and the depth.
        chat: whether the prompt is a user's message in the tokenizer's chat template.

    Raises:
        DataError: a document or a length is too short, or there is no chat template.
    """
    return [
        _question(task, document, tokenizer, length, depth, seed, chat)
        for task in tasks
        for length in lengths
        for depth in (depths if task in ONE_FACT else (None,))
        for document in documents
    ]


def check_room(tokenizer: ChatTokenizer, length: int, tasks: Sequence[RulerTask], *, chat: bool) -> None:
    """Check that prompts and answers of some tasks fit into a length; this needs no document.

    Raises:
        DataError: one does not, and the message gives the tokens needed; or there is no chat template.
    """
    blank = sample_of("", np.resize(np.array([*tokenizer.prefix, 0], dtype=np.int64), length + 1))
    questions([blank], tokenizer, tasks=tasks, lengths=[length], depths=[0.0], seed=0, chat=chat)


def _question(
    name: RulerTask, document: Sample, tokenizer: ChatTokenizer, length: int, depth: float | None, seed: int, chat: bool
) -> Question:
    content = sample_of(document.source, document.tokens[:length]).sha256
    rng = random.Random(sha256_of(["ruler", name, seed, content, depth, length]))
    task = TASKS[name](_Draw(rng, 0.5 if depth is None else depth, lambda: _own_words(document, tokenizer, length)))
    head, tail = tokenizer.chat(task.opening) if chat else ([*tokenizer.prefix, *tokenizer.ids(task.opening)], [])
    if chat:
        tail = tail + continued(tokenizer, "\n", task.question.rpartition("\n")[2].strip())
        question = continued(tokenizer, ".", task.question.rpartition("\n")[0])
    else:
        question = continued(tokenizer, ".", task.question)
    answer = ", ".join(fact.text for fact in task.facts)
    kept = len(tokenizer.ids(" " + answer)) + SPARE_TOKENS
    inserted = [(depth, continued(tokenizer, ".", text)) for depth, text in task.inserted]
    room = length - kept - len(head) - len(question) - len(tail) - sum(len(ids) for _, ids in inserted)
    if room < 1:
        raise DataError(
            f"{length} tokens are too few for the task {name}, whose texts and answer take {length - room}: the length "
            f"must be at least {length - room + 1} tokens"
        )
    body = _listed(task.listed, tokenizer, room) if task.listed else _body(document, tokenizer, room)
    parts: list[Sequence[int] | TokenIds] = [head]
    done = 0
    for share, ids in inserted:
        at = max(end_of_sentence_near(tokenizer, body, round(share * room)), done)
        parts += [body[done:at], ids]
        done = at
    parts += [body[done:], question, tail]
    tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
    return Question(name, document.source, length, tokens, task.facts)


def _body(document: Sample, tokenizer: Tokenizer, room: int) -> TokenIds:
    """The first tokens of a document, without the tokenizer's prefix."""
    beginning = len(tokenizer.prefix)
    text = document.tokens[beginning if document.tokens[:beginning].tolist() == tokenizer.prefix else 0 :]
    if len(text) < room:
        raise DataError(f"{document.source} has {len(text)} tokens of text, but the task needs {room}")
    return text[:room]


def _listed(made: Callable[[int], str], tokenizer: Tokenizer, room: int) -> TokenIds:
    """A made text of exactly so many tokens; one that is too short is repeated by a longer one."""
    characters = 4 * room
    while len(ids := tokenizer.ids(made(characters))) < room:
        characters *= 2
    return np.asarray(ids[:room], dtype=np.int64)


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def _words(rng: random.Random, count: int, syllables: int = 3) -> list[str]:
    """Distinct words that no document has."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(letters) for _ in range(syllables) for letters in LETTERS)] = None
    return list(found)


def _own_words(document: Sample, tokenizer: Tokenizer, length: int) -> list[str]:
    """The words of a document's first tokens, without short and very long ones, in the order of the text."""
    text = tokenizer.text(document.tokens[:length]).lower()
    return list(dict.fromkeys(re.findall(r"(?<!\w)[^\W\d_]{4,12}(?!\w)", text)))


def _spread(count: int) -> list[float]:
    return [(number + 0.5) / count for number in range(count)]


HIDDEN = "Numbers are hidden in the long text that follows. Keep them in mind; you will be asked for them.\n"


def _single(draw: _Draw) -> _Task:
    return _keyed(draw.rng, draw.depth, 1)


def _multi_key(draw: _Draw) -> _Task:
    return _keyed(draw.rng, draw.depth, FACTS)


def _keyed(rng: random.Random, depth: float, keys: int) -> _Task:
    """A number for each of several words; one is asked for."""
    words, numbers = _words(rng, keys), [_number(rng) for _ in range(keys)]
    depths = [depth, *rng.sample(_spread(2 * keys), keys - 1)]
    told = [f"\nThe number of {word} is {number}.\n" for word, number in zip(words, numbers, strict=True)]
    asked = f"\nWhat is the number of {words[0]} in the text?\nThe number of {words[0]} is"
    return _Task(HIDDEN, tuple(sorted(zip(depths, told, strict=True))), asked, (Fact(numbers[0], depth),))


def _multi_value(draw: _Draw) -> _Task:
    """Several numbers for one word."""
    rng = draw.rng
    (word,), numbers, depths = _words(rng, 1), [_number(rng) for _ in range(FACTS)], _spread(FACTS)
    told = [f"\nOne of the numbers of {word} is {number}.\n" for number in numbers]
    asked = f"\nWhat are all {FACTS} numbers of {word} in the text?\nThe {FACTS} numbers of {word} are"
    facts = tuple(map(Fact, numbers, depths))
    return _Task(HIDDEN, tuple(zip(depths, told, strict=True)), asked, facts)


def _multi_query(draw: _Draw) -> _Task:
    """Numbers of several words, all of which are asked for."""
    rng = draw.rng
    words, numbers, depths = _words(rng, FACTS), [_number(rng) for _ in range(FACTS)], _spread(FACTS)
    told = [f"\nThe number of {word} is {number}.\n" for word, number in zip(words, numbers, strict=True)]
    order = rng.sample(range(FACTS), FACTS)
    named = ", ".join(words[i] for i in order[:-1]) + f" and {words[order[-1]]}"
    asked = f"\nWhat are the numbers of {named} in the text?\nThe numbers of {named} are"
    facts = tuple(Fact(numbers[i], depths[i]) for i in order)
    return _Task(HIDDEN, tuple(zip(depths, told, strict=True)), asked, facts)


def _variables(draw: _Draw) -> _Task:
    """A value that is handed on from variable to variable; all that have it are asked for."""
    rng = draw.rng
    names, value, depths = [word.upper() for word in _words(rng, CHAINED)], _number(rng), _spread(CHAINED)
    told = [f"\nVAR {names[0]} = {value}\n"]
    told += [f"\nVAR {name} = VAR {before}\n" for before, name in itertools.pairwise(names)]
    opening = "Variables are assigned in the long text that follows. Keep track of their values.\n"
    asked = f"\nWhich {CHAINED} variables have the value {value}?\nThe {CHAINED} variables with the value {value} are"
    return _Task(opening, tuple(zip(depths, told, strict=True)), asked, tuple(map(Fact, names, depths)))


def _common_words(draw: _Draw) -> _Task:
    """A numbered list of a document's words, in which ten occur ten times as often as the others."""
    own = draw.own_words()
    made = _words(draw.rng, max(11 * COMMON - len(own), 0), 4)
    words = draw.rng.sample([*own, *made], len(own) + len(made))
    common, others = words[:COMMON], words[COMMON:]

    def listed(characters: int) -> str:
        # each round has the common words as often; so a longer list begins like a shorter one
        drawn, lines = random.Random(common[0]), list[str]()
        while len(lines) * 12 < characters or not lines:
            page = [word for word in drawn.sample(others, 10 * COMMON) for _ in range(SELDOM)]
            page += [word for word in common for _ in range(OFTEN)]
            drawn.shuffle(page)
            lines += [f"{place}. {word}" for place, word in enumerate(page, start=len(lines) + 1)]
        return " ".join(lines)

    opening = "A numbered list of words follows. Some of them occur more often than others.\n"
    asked = f"\nWhich {COMMON} words are the most common in the list?\nThe {COMMON} most common words are"
    return _Task(opening, (), asked, tuple(Fact(word, None) for word in common), listed)


def _frequent_words(draw: _Draw) -> _Task:
    """Words whose frequencies fall as 1 / rank^2 (Zeta distribution); the first three are asked for."""
    words = _words(draw.rng, 50)

    def listed(characters: int) -> str:
        repeated = random.Random(words[0])
        shares = [1 / rank**2 for rank in range(1, len(words) + 1)]
        return " ".join(repeated.choices(words, shares, k=max(characters // 7, 1)))

    opening = "A text in code words follows. Keep track of how often each of them occurs.\n"
    asked = f"\nWhich {FREQUENT} words are the most frequent in the text?\nThe {FREQUENT} most frequent words are"
    return _Task(opening, (), asked, tuple(Fact(word, None) for word in words[:FREQUENT]), listed)


TASKS: dict[RulerTask, Callable[[_Draw], _Task]] = {
    "single": _single,
    "multi-key": _multi_key,
    "multi-value": _multi_value,
    "multi-query": _multi_query,
    "variable-tracking": _variables,
    "common-words": _common_words,
    "frequent-words": _frequent_words,
}
"""RULER's synthetic tasks; its questions about Wikipedia are not among them."""
ONE_FACT: tuple[RulerTask, ...] = ("single", "multi-key")
"""Tasks that ask for one fact, at each depth; the facts of others are spread over the text."""
