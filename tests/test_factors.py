import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factor_search.errors import FactorsError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file, parse_factors, read_factors

MODEL = FactorsModel(
    id="m",
    architecture="LlamaForCausalLM",
    rope_theta=10_000.0,
    rotary_dim=8,
    original_length=64,
    base_rope_type="default",
)
DOCUMENT = factors_file(Factors.of([1.0, 1.5, 2.0, 8.0], 4, 1.1), MODEL, 512).as_json()


@given(
    st.lists(st.floats(1.0, 1e6), min_size=4, max_size=4),
    st.integers(0, 256),
    st.floats(0.1, 10.0),
)
def test_round_trip_is_exact(values: list[float], initial_tokens: int, attention_factor: float) -> None:
    factors = Factors.of(values, initial_tokens, attention_factor)
    document = json.loads(json.dumps(factors_file(factors, MODEL, 512).as_json()))
    assert parse_factors(document).factors == factors
    assert parse_factors(document).as_json() == document


def test_keys_are_the_published_contract() -> None:
    assert list(DOCUMENT) == [
        "schema",
        "model",
        "target_length",
        "scale",
        "rescale_factors",
        "initial_tokens",
        "attention_factor",
        "perplexity",
        "provenance",
        "sha256",
    ]
    assert DOCUMENT["schema"] == "factor-search/factors@1"
    assert list(DOCUMENT["model"]) == [
        "id",
        "revision",
        "architecture",
        "rope_theta",
        "rotary_dim",
        "original_length",
        "base_rope_type",
    ]
    assert list(DOCUMENT["perplexity"]) == ["search", "validation", "held_out", "held_out_baselines"]


def test_hash_depends_on_content_alone() -> None:
    assert Factors.of([1, 2]).sha256 == Factors.of((1.0, 2.0)).sha256
    different = [Factors.of([1, 2.0000001]), Factors.of([1, 2], 1), Factors.of([1, 2], 0, 1.1)]
    assert len({factors.sha256 for factors in [Factors.of([1, 2]), *different]}) == 4


def test_a_file_without_hash_is_accepted() -> None:
    document = {key: value for key, value in DOCUMENT.items() if key not in ("sha256", "perplexity", "provenance")}
    assert parse_factors(document).factors.initial_tokens == 4


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "wrong length": ({"rescale_factors": [1.0, 2.0]}, "2 numbers, but rotary_dim 8 needs 4"),
    "empty": ({"rescale_factors": []}, "0 numbers"),
    "NaN": ({"rescale_factors": [1.0, float("nan"), 2.0, 3.0]}, "finite"),
    "infinite": ({"rescale_factors": [1.0, 1.0, 2.0, float("inf")]}, "finite"),
    "below one": ({"rescale_factors": [0.5, 1.0, 2.0, 3.0]}, r"rescale_factors\[0\] is 0.5: below 1"),
    "negative": ({"rescale_factors": [-1.0, 1.0, 2.0, 3.0]}, "above 0"),
    "text": ({"rescale_factors": ["a", 1.0, 2.0, 3.0]}, "rescale_factors.0"),
    "unknown schema": ({"schema": "factor-search/factors@9"}, "unknown schema"),
    "no schema": ({"schema": None}, "unknown schema"),
    "unknown key": ({"lambda": 1}, "lambda: unknown key"),
    "missing model": ({"model": None}, "model"),
    "negative initial tokens": ({"initial_tokens": -1}, "initial_tokens"),
    "zero attention factor": ({"attention_factor": 0.0}, "attention_factor"),
    "scale that contradicts": ({"scale": 4.0}, "scale is 4.0"),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(change: dict[str, Any], message: str) -> None:
    document = copy.deepcopy(DOCUMENT) | change
    del document["sha256"]
    with pytest.raises(FactorsError, match=message) as caught:
        parse_factors(document)
    assert "\n" not in str(caught.value)


def test_a_changed_file_does_not_match_its_hash() -> None:
    with pytest.raises(FactorsError, match="does not match its sha256"):
        parse_factors(DOCUMENT | {"attention_factor": 1.2})


def test_below_one_is_allowed_where_the_context_shrinks() -> None:
    assert factors_file(Factors.of([0.5] * 4), MODEL, 32).factors.rescale_factors == (0.5,) * 4


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b'"x"'])
def test_unreadable_files_name_themselves(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "factors.json"
    file.write_bytes(content)
    with pytest.raises(FactorsError, match=r"factors\.json"):
        read_factors(file)


@pytest.mark.parametrize(
    ("values", "initial_tokens", "attention_factor"),
    [([], 0, 1.0), ([0.0], 0, 1.0), ([float("nan")], 0, 1.0), ([1.0], -1, 1.0), ([1.0], 0, float("inf"))],
)
def test_impossible_values_cannot_be_built(values: list[float], initial_tokens: int, attention_factor: float) -> None:
    with pytest.raises(FactorsError):
        Factors.of(values, initial_tokens, attention_factor)
