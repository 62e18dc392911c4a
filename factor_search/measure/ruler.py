"""Measures how many facts a model finds in long texts: the synthetic tasks of RULER (2404.06654), by length and depth.

A model answers by greedy decoding. As in RULER, the score of an answer is the share of the facts that it names.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import GenerationConfig

from factor_search.factors import Factors
from factor_search.files.canonical_json import finite
from factor_search.files.html import html_table
from factor_search.model.application import Application
from factor_search.model.loading import LoadedModel
from factor_search.text.ruler import Question


@dataclass(frozen=True)
class Answer:
    """What a model answered to a question."""

    text: str
    found: tuple[bool, ...]
    """Which of the facts it names."""


@dataclass(frozen=True)
class Score:
    """The share of facts found in one task, at one length and depth."""

    task: str
    length: int
    """Tokens of the prompts and of the room for their answers."""
    depth: float | None
    """None over all depths, or where the whole text tells a fact."""
    accuracy: float
    standard_error: float
    """Of the accuracy over documents; NaN for a single one."""
    count: int
    """Number of documents."""


@torch.inference_mode()
def answers(
    loaded: LoadedModel,
    factors: Factors,
    questions: Sequence[Question],
    text: Callable[[Any], str],
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Let the model answer each question with the given factors, which are in force at every length.

    Args:
        loaded: the model.
        factors: the candidate.
        questions: the prompts.
        text: of token ids, int64 of shape (tokens,).
        on_answer: called with the number of answers and of questions.
    """
    model, given = loaded.model, []
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    longest = max((one.length for one in questions), default=None)
    with Application(model, loaded.geometry, factors, longest), _no_reminder():
        for question in questions:
            ids = torch.from_numpy(question.tokens)[None].to(model.device)
            settings = GenerationConfig(
                max_new_tokens=question.room, do_sample=False, eos_token_id=ends, pad_token_id=_any_of(ends)
            )
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            said = text(made[0, ids.shape[1] :].cpu().numpy())
            given.append(Answer(said, tuple(question.found(said))))
            on_answer(len(given), len(questions))
    return given


@contextmanager
def _no_reminder() -> Iterator[None]:
    """Keep transformers from saying that texts are longer than the configuration's window, which the factors extend."""
    logger = logging.getLogger("transformers.generation.stopping_criteria")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _any_of(ends: int | list[int] | None) -> int:
    """A token to pad with, which a single row never is."""
    return (ends[0] if isinstance(ends, list) else ends) or 0


def scores(questions: Sequence[Question], given: Sequence[Answer]) -> list[Score]:
    """Compute the share of facts found, by task, length and depth; and over all depths, where there are several."""
    found: dict[tuple[str, int, float | None], dict[str, list[bool]]] = {}
    for question, answer in zip(questions, given, strict=True):
        for fact, right in zip(question.facts, answer.found, strict=True):
            for depth in dict.fromkeys((fact.depth, None)):
                place = found.setdefault((question.task, question.length, depth), {})
                place.setdefault(question.source, []).append(right)
    return [_score(*place, [fmean(one) for one in by_document.values()]) for place, by_document in found.items()]


def _score(task: str, length: int, depth: float | None, shares: Sequence[float]) -> Score:
    error = stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
    return Score(task, length, depth, fmean(shares), error, len(shares))


def as_json(measured: Sequence[Score]) -> dict[str, Any]:
    """Return a JSON document with tasks, lengths and scores; a standard error of a single document is null."""
    return {
        "tasks": list(dict.fromkeys(one.task for one in measured)),
        "lengths": list(dict.fromkeys(one.length for one in measured)),
        "scores": [vars(one) | {"standard_error": finite(one.standard_error)} for one in measured],
    }


@dataclass(frozen=True, kw_only=True)
class RulerResult:
    """How many facts the model finds, by task, length and depth."""

    factors: Factors
    scores: Sequence[Score]

    def as_json(self) -> dict[str, Any]:
        """Tasks, lengths, the scores and the factors as JSON."""
        return {"task": "ruler", **as_json(self.scores), "factors": self.factors.as_json()}

    def table(self) -> str:
        """A line for each task, a column for each length."""
        return table(self.scores)

    def _repr_html_(self) -> str:
        document = as_json(self.scores)
        overall = {(one.task, one.length): one for one in self.scores if one.depth is None}
        rows = [[task, *(shown(overall[task, n]) for n in document["lengths"])] for task in document["tasks"]]
        titles = ["task", *(f"{length:,} tokens" for length in document["lengths"])]
        return f"<div><strong>Facts found (RULER)</strong>{html_table(titles, rows)}</div>"


def table(measured: Sequence[Score]) -> str:
    """Format scores over all depths for a terminal: a line for each task, a column for each length."""
    document = as_json(measured)
    overall = {(one.task, one.length): one for one in measured if one.depth is None}
    lines = [f"{'':18}" + "".join(f"{length:>16,}" for length in document["lengths"])]
    for task in document["tasks"]:
        cells = (shown(overall[task, length]) for length in document["lengths"])
        lines.append(f"{task:18}" + "".join(f"{cell:>16}" for cell in cells))
    count = measured[0].count
    return "\n".join([*lines, f"share of facts found ± standard error, {count} document{'s' * (count != 1)} each"])


def shown(score: Score) -> str:
    """An accuracy with its standard error."""
    error = "" if math.isnan(score.standard_error) else f" ± {score.standard_error:.3f}"
    return f"{score.accuracy:.3f}{error}"
