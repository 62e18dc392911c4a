"""RULER's tasks: what the prompts hold, what counts as found, and that a model is asked with the factors given."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.measure.ruler import Answer, answers, as_json, scores, table
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import RULER_TASKS, ModelSpec, RulerTask
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.ruler import ONE_FACT, SPARE_TOKENS, TASKS, Fact, Question, questions
from factor_search.text.samples import Sample
from factor_search.text.tokens import CachedTokenizer
from tests.test_needle import TOKENIZERS, document

FACTORS = Factors.of([1.0 + 0.5 * i for i in range(8)], 2, 1.1)
TEMPLATE = "{{ '<user>' }}{% for one in messages %}{{ one.content }}{% endfor %}{{ '</user>\n<answer>' }}"


def chatting() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(64)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ask(task: RulerTask, name: str = "bytes", seed: int = 0, **options: object) -> Question:
    defaults: dict[str, object] = {"lengths": [4000], "depths": [0.3], "seed": 0, "chat": False}
    tokenizer = TOKENIZERS[name]
    (found,) = questions([document(tokenizer, seed, words=4000)], tokenizer, tasks=[task], **(defaults | options))  # type: ignore[arg-type]
    return found


def test_every_task_has_a_name() -> None:
    assert tuple(TASKS) == RULER_TASKS


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(RULER_TASKS),
    name=st.sampled_from(sorted(TOKENIZERS)),
    length=st.integers(1500, 4000),
    depth=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_a_prompt_tells_what_it_asks_for(task: RulerTask, name: str, length: int, depth: float, seed: int) -> None:
    asked = ask(task, name, seed, lengths=[length], depths=[depth])
    tokenizer = TOKENIZERS[name]
    text = tokenizer.text(asked.tokens)
    answer = ", ".join(fact.text for fact in asked.facts)
    assert asked.tokens[: len(tokenizer.prefix)].tolist() == tokenizer.prefix
    assert asked.length == length
    assert asked.room == len(tokenizer.ids(" " + answer)) + SPARE_TOKENS
    assert all(asked.found(answer))
    assert all(asked.found(text))
    assert not any(asked.found(text.rpartition("\n")[2])), "the question does not give the answer away"
    assert text.endswith(("is", "are"))
    places = [text.lower().index(fact.text.lower()) / len(text) for fact in asked.facts]
    for fact, place in zip(asked.facts, places, strict=True):
        assert fact.depth is None or abs(place - fact.depth) < 0.3
    if task in ONE_FACT:
        assert [fact.depth for fact in asked.facts] == [depth]
    again = ask(task, name, seed, lengths=[length], depths=[depth])
    np.testing.assert_array_equal(again.tokens, asked.tokens)


def test_the_facts_of_each_task() -> None:
    text = {task: TOKENIZERS["bytes"].text(ask(task).tokens) for task in RULER_TASKS}
    facts = {task: [fact.text for fact in ask(task).facts] for task in RULER_TASKS}
    assert text["single"].count("The number of") == 2, "told, and asked for"
    assert text["multi-key"].count("\nThe number of") == 5
    assert len(set(facts["multi-value"])) == len(set(facts["multi-query"])) == 4
    told = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text["variable-tracking"])
    assert [name for name, _ in told] == facts["variable-tracking"]
    assert [value for _, value in told[1:]] == facts["variable-tracking"][:-1]
    assert told[0][1] in text["variable-tracking"].rpartition("Which")[2]
    for task in ("common-words", "frequent-words"):
        words = re.findall(r"[^\W\d_]+", text[task].partition("\n")[2].partition("\nWhich")[0])
        ranked = sorted(set(words), key=lambda word: -words.count(word))
        assert set(ranked[: len(facts[task])]) == set(facts[task])


def test_common_words_are_those_of_the_document() -> None:
    words = [
        "river",
        "stone",
        "night",
        "silent",
        "garden",
        "walks",
        "cloud",
        "forest",
        "bridge",
        "winter",
        "summer",
        "ladder",
    ]
    made = [f"{a}{b}" for a in words for b in words]
    tokenizer = TOKENIZERS["bytes"]
    sample = Sample("a", tokenizer(" ".join(made[:130] * 4)), "0")
    (asked,) = questions([sample], tokenizer, tasks=["common-words"], lengths=[3000], depths=[0.5], seed=0)
    assert {fact.text for fact in asked.facts} <= set(made)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("1234567, 7654321.", [True, True]),
        (" 7654321 and then nothing", [False, True]),
        ("12345678 7654321", [False, True]),
        ("x1234567", [False, False]),
        ("", [False, False]),
    ],
)
def test_a_fact_is_found_as_a_whole_word(answer: str, found: list[bool]) -> None:
    asked = Question("multi-value", "a", 10, np.zeros(5, dtype=np.int64), (Fact("1234567", 0.1), Fact("7654321", 0.9)))
    assert asked.found(answer) == found
    words = Question("common-words", "a", 10, np.zeros(5, dtype=np.int64), (Fact("Über", None),))
    assert words.found("1. über 2. unter") == [True]


def test_a_text_that_is_too_short_is_refused() -> None:
    refusal = r"^120 tokens are too few for the task multi-key, whose texts .* at least \d+ tokens$"
    with pytest.raises(DataError, match=refusal) as refused:
        ask("multi-key", lengths=[120])
    least = int(str(refused.value).split()[-2])
    with pytest.raises(DataError, match="too few"):
        ask("multi-key", lengths=[least - 1])
    assert ask("multi-key", lengths=[least]).length == least
    with pytest.raises(DataError, match=r"document 0 has \d+ tokens of text, but the task needs"):
        ask("single", lengths=[10**6])


def test_a_prompt_in_a_chat_template() -> None:
    tokenizer = CachedTokenizer(chatting())
    for task in RULER_TASKS:
        (asked,) = questions(
            [document(tokenizer)], tokenizer, tasks=[task], lengths=[3000], depths=[0.5], seed=0, chat=True
        )
        text = tokenizer.text(asked.tokens)
        assert text.startswith("<user>")
        message, _, answer = text.partition("</user>\n<answer>")
        assert message.rstrip().endswith("?")
        assert answer.startswith("The ")
        assert all(asked.found(message))
    with pytest.raises(DataError, match="has no chat template"):
        ask("single", chat=True)
    for template, message in (("{{ 1 / 0 }}", "fails: division by zero"), ("{{ 'Hello' }}", "changes the text")):
        broken = chatting()
        broken.chat_template = template
        with pytest.raises(DataError, match=message):
            CachedTokenizer(broken).chat("x")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(id=str(checkpoint)))


def test_an_answer_is_the_greedy_continuation_with_the_factors(loaded: LoadedModel) -> None:
    tokenizer = CachedTokenizer(loaded.tokenizer)
    asked = questions([document(tokenizer)], tokenizer, tasks=["single"], lengths=[400, 300], depths=[0.5], seed=0)
    progress: list[tuple[int, int]] = []
    before = loaded.model.generation_config.to_dict() if loaded.model.generation_config else None
    given = answers(loaded, FACTORS, asked, tokenizer.text, lambda *told: progress.append(told))
    assert progress == [(1, 2), (2, 2)]
    assert (loaded.model.generation_config.to_dict() if loaded.model.generation_config else None) == before
    for question, answer in zip(asked, given, strict=True):
        tokens = question.tokens.tolist()
        with torch.inference_mode(), Injector(loaded.model, loaded.geometry) as injector, injector.using([FACTORS]):
            for _ in range(question.room):
                ids = torch.tensor([tokens])
                tokens.append(int(loaded.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
                if tokens[-1] == 256:  # the end of the text
                    break
        assert answer.text == tokenizer.text(np.array(tokens[len(question.tokens) :]))
        assert answer.found == tuple(question.found(answer.text))


def test_scores_by_task_length_and_depth() -> None:
    def question(task: RulerTask, source: str, *facts: Fact) -> Question:
        return Question(task, source, 100, np.zeros(50, dtype=np.int64), facts)

    first, second = Fact("1", 0.25), Fact("2", 0.75)
    asked = [question("multi-value", one, first, second) for one in ("a", "b")]
    asked += [question("common-words", "a", Fact("x", None), Fact("y", None))]
    given = [Answer("", (True, False)), Answer("", (True, True)), Answer("", (True, False))]
    found = {(one.task, one.depth): one for one in scores(asked, given)}
    assert {key: one.accuracy for key, one in found.items()} == {
        ("multi-value", 0.25): 1.0,
        ("multi-value", 0.75): 0.5,
        ("multi-value", None): 0.75,
        ("common-words", None): 0.5,
    }
    assert found["multi-value", None].standard_error == pytest.approx(0.25)
    assert found["multi-value", 0.75].standard_error == pytest.approx(0.5)
    assert math.isnan(found["common-words", None].standard_error)
    assert [one.count for one in found.values()] == [2, 2, 2, 1]
    document = as_json(list(found.values()))
    assert (document["tasks"], document["lengths"]) == (["multi-value", "common-words"], [100])
    assert document["scores"][-1]["standard_error"] is None
    assert table(list(found.values())).splitlines()[1].split() == ["multi-value", "0.750", "±", "0.250"]
