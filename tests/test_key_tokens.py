"""Key tokens (2410.23771): which they are, that they are kept, and what perplexity over them is."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from factor_search.errors import DataError, SpecError
from factor_search.measure import key_tokens
from factor_search.measure.key_tokens import check_same_tokens, key_positions, with_key_tokens
from factor_search.measure.measurement import PerplexityResult, measure
from factor_search.measure.request import GivenDocuments, MeasurementRequest
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.samples import SampleSet, sample_of
from factor_search.text.tokens import CachedTokenizer
from tests.test_needle import TOKENIZERS, with_start


def test_key_tokens_need_the_long_text_and_are_likely_in_it() -> None:
    long = np.array([0.5, 0.5, 1.9, 2.1, 0.1])
    short = np.array([0.6, 2.6, 3.95, 9.0, 2.05])
    assert key_positions(long, short, first=1) == (2, 3)
    assert key_positions(long, long, first=1) == ()


@pytest.fixture
def loose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A random model predicts hardly any token better from a longer text."""
    monkeypatch.setattr(key_tokens, "GAIN", 0.02)
    monkeypatch.setattr(key_tokens, "LIKELY", -100.0)
    monkeypatch.setenv("FACTOR_SEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def chooser(checkpoint: Path) -> LoadedModel:
    """It reads 256 tokens: its configuration says so."""
    return load_model(ModelSpec(id=str(checkpoint), original_length=256))


def documents(count: int = 2, tokens: int = 200) -> SampleSet:
    rows = np.random.default_rng(0).integers(0, 256, (count, tokens))
    return SampleSet("evaluation", tuple(sample_of(str(n), row) for n, row in enumerate(rows)))


def losses_by_hand(model: LoadedModel, row: np.ndarray, near: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each token but the first, from the whole text before it, and from windows that move by a quarter."""
    ids, short = torch.from_numpy(row)[None], np.full(len(row), math.nan)

    def losses(part: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            logits = model.model(part, use_cache=False).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none").numpy()

    for start in range(0, len(row), near // 4):
        window = losses(ids[:, start : start + near])
        first = start + 1 + max(int(np.count_nonzero(~np.isnan(short[start + 1 : start + near]))), 0)
        short[first : start + near] = window[first - start - 1 :]
        if start + near >= len(row):
            break
    return losses(ids), short[1:]


@pytest.mark.usefixtures("loose")
def test_positions_equal_those_computed_by_hand(chooser: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_key_tokens(documents(), chooser, near=40)
    for sample in found.samples:
        long, short = losses_by_hand(chooser, sample.tokens, 40)
        assert sample.scored == tuple(int(n) + 1 for n in np.flatnonzero((short - long > 0.02) & (long < 100)))
        assert sample.scored
        assert sample.scored[0] >= 40, "the first window is the whole text before it"
    monkeypatch.setattr(key_tokens, "_chosen", lambda *_: pytest.fail("they are kept"))
    assert with_key_tokens(documents(), chooser, near=40) == found


def test_what_no_token_is_key_in_is_refused(
    chooser: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTOR_SEARCH_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"^no token of 2 documents is predicted better by 2 nats from 200 tokens than"):
        with_key_tokens(documents(), chooser)
    with pytest.raises(DataError, match=r"a short context of 200 tokens is not within 2 and the 200"):
        with_key_tokens(documents(), chooser, near=200)
    with pytest.raises(DataError, match=r"reads 256 tokens, but the texts have 300: name one that reads farther"):
        with_key_tokens(documents(tokens=300), chooser)


def test_tokenizers_must_agree() -> None:
    one = TOKENIZERS["byte pairs"]
    samples = SampleSet("evaluation", (sample_of("a", one("river stone night")),))
    check_same_tokens(samples, one, one)
    for other in (TOKENIZERS["bytes"], CachedTokenizer(with_start(byte_tokenizer(64)))):
        with pytest.raises(DataError, match="has another tokenizer"):
            check_same_tokens(samples, one, other)


@pytest.mark.usefixtures("loose")
def test_the_perplexity_of_key_tokens(checkpoint: Path, texts: Path, chooser: LoadedModel) -> None:
    given = GivenDocuments(files=[str(texts / "*.txt")], length=240, documents=3)
    model = ModelSpec(id=str(checkpoint))
    request = MeasurementRequest(
        model=model, documents=given, task="key-tokens", method="yarn", key_model=chooser.spec, key_context=60
    )
    result = measure(request)
    assert isinstance(result, PerplexityResult)
    assert result.as_json()["task"] == "key-tokens"
    assert result.table().startswith("perplexity of key tokens ")
    assert 0 < result.summary.tokens < 3 * 100
    every = measure(MeasurementRequest(model=model, documents=given, method="yarn"))
    assert isinstance(every, PerplexityResult)
    assert every.summary.tokens == 3 * 239
    assert result.summary.perplexity != every.summary.perplexity


def test_a_model_that_chooses_them_is_needed(checkpoint: Path, texts: Path) -> None:
    given = GivenDocuments(files=[str(texts / "*.txt")], length=240)
    with pytest.raises(SpecError, match=r"^key_model is missing"):
        MeasurementRequest(model=ModelSpec(id=str(checkpoint)), documents=given, task="key-tokens")
