import math
from pathlib import Path

import numpy as np
import pytest
import torch

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.measure.passkey import Retrieval, accuracy_by_cell, as_json, passkey_accuracy, table
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.text.needle import Needle
from factor_search.text.samples import Sample, sample_of

FACTORS = Factors.of([1.0 + 0.5 * i for i in range(8)], 2, 1.1)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(id=str(checkpoint)))


def greedy(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """The model's own greedy continuation, one token at a time from all logits."""
    tokens = list(prompt)
    with torch.inference_mode(), Injector(loaded.model, loaded.geometry) as injector, injector.using([FACTORS]):
        for _ in range(count):
            tokens.append(int(loaded.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens


def test_right_is_what_greedy_decoding_gives(loaded: LoadedModel) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, 90).tolist()
    tokens = greedy(loaded, prompt, 5)
    answer = tuple(range(90, 95))
    samples = [sample_of("right", np.array(tokens), answer)]
    for position in answer:  # one token wrong, and the tokens after it as they would follow
        wrong = [*tokens[:position], (tokens[position] + 1) % 256]
        samples.append(sample_of("wrong", np.array(greedy(loaded, wrong, 94 - position)), answer))
    retrievals = passkey_accuracy(loaded, FACTORS, samples)
    assert [retrieval.right for retrieval in retrievals] == [True] + [False] * 5
    with torch.inference_mode(), Injector(loaded.model, loaded.geometry) as injector, injector.using([FACTORS]):
        for sample, retrieval in zip(samples, retrievals, strict=True):
            ids = torch.from_numpy(sample.tokens)[None]
            logits = loaded.model(input_ids=ids, use_cache=False).logits[0, 89:94].double()
            expected = torch.nn.functional.cross_entropy(logits, ids[0, 90:95]).item()
            assert retrieval.loss == pytest.approx(expected, rel=1e-5)
            assert retrieval.tokens == 5
    assert not passkey_accuracy(loaded, Factors.of([1.0] * 8), samples[:1])[0].right, "the factors are those given"


def test_a_sample_without_an_answer_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match="plain has no answer"):
        passkey_accuracy(loaded, FACTORS, [sample_of("plain", np.arange(20))])


def test_a_loss_that_is_not_finite_is_a_wrong_answer(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.full_like(output, math.nan)

    handle = loaded.model.lm_head.register_forward_hook(nan)
    (retrieval,) = passkey_accuracy(loaded, FACTORS, [sample_of("a", np.zeros(20, dtype=np.int64), (19,))])
    handle.remove()
    assert not retrieval.right
    assert math.isnan(retrieval.loss)


def test_cells_against_numpy() -> None:
    def needle(length: int, depth: float) -> Needle:
        return Needle(Sample("a", np.zeros(length, dtype=np.int64), "0", (length - 1,)), 123, depth, 0, 1)

    needles = [needle(100, 0.0)] * 4 + [needle(100, 1.0)] * 4 + [needle(200, 0.0)] + [needle(200, 1.0)]
    outcomes = [True, True, False, True] + [False] * 4 + [True, False]
    losses = [0.1, 0.2, 3.0, 0.3] + [2.0] * 4 + [0.5, math.nan]
    retrievals = [Retrieval(right, loss, 5) for right, loss in zip(outcomes, losses, strict=True)]
    cells = accuracy_by_cell(needles, retrievals)
    assert [(cell.length, cell.depth, cell.count) for cell in cells] == [
        (100, 0.0, 4),
        (100, 1.0, 4),
        (200, 0.0, 1),
        (200, 1.0, 1),
    ]
    assert cells[0].accuracy == 0.75
    assert cells[0].standard_error == pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2)
    assert cells[0].answer_perplexity == pytest.approx(math.exp(np.mean(losses[:4])))
    document = as_json(cells)
    assert (document["lengths"], document["depths"]) == ([100, 200], [0.0, 1.0])
    assert document["cells"][3] == {
        "length": 200,
        "depth": 1.0,
        "accuracy": 0.0,
        "standard_error": None,
        "count": 1,
        "answer_perplexity": None,
    }
    head, first, second, note = table(cells).splitlines()
    assert head.split() == ["tokens", "depth", "0%", "depth", "100%"]
    assert first.split() == ["100", "0.750", "±", "0.250", "0.000", "±", "0.000"]
    assert second.split() == ["200", "1.000", "0.000"]
    assert "4 documents each" in note
