import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_search.errors import DataError
from factor_search.finetune.spec import FinetuneSpec
from factor_search.plan.training_documents import training_documents
from factor_search.spec import DataSpec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.samples import PARTS, Samples, distinct_tokens, load_samples
from factor_search.text.tokens import CachedTokenizer, TokenIds
from tests.synthetic import geometry

TOKENIZE = CachedTokenizer(byte_tokenizer(64))
ORIGINAL, LONGEST = 64, 256
GEOMETRY = geometry(original=ORIGINAL)
HEADER = "Licensed to all who read this, under the terms that follow. " * 2


def text(number: int, length: int, header: bool = False) -> str:
    body = "".join(f"{number}:{place};" for place in range(length))
    return ((HEADER if header else "") + body)[:length]


def data_spec(files: list[str], cut: bool, counts: tuple[int, int, int], **more: Any) -> DataSpec:
    names = ("search_documents", "validation_documents", "held_out_documents")
    counted = dict(zip(names, counts, strict=True))
    return DataSpec.model_validate(
        {"files": files, "least_tokens": LONGEST, "cut_long_documents": cut, **counted, **more}
    )


def training(data: DataSpec, seed: int, length: int, files: list[str] | None = None, **changes: Any) -> list[TokenIds]:
    settings = FinetuneSpec.model_validate({"steps": 100} | changes)
    return training_documents(data, files, TOKENIZE, GEOMETRY, length, settings, seed=seed)


def split_at(data: DataSpec, length: int, seed: int) -> Samples:
    return load_samples(data, TOKENIZE, length, seed=seed, distinct=distinct_tokens(data, GEOMETRY.original_length))


documents = st.tuples(st.integers(0, 15), st.integers(20, 700), st.booleans())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(documents, max_size=12),
    st.booleans(),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    st.integers(0, 3),
    st.booleans(),
)
def test_what_any_stage_uses_is_never_trained_on(
    drawn: list[tuple[int, int, bool]], cut: bool, counts: tuple[int, int, int], seed: int, elsewhere: bool
) -> None:
    """Documents may repeat each other, begin alike, or be the beginnings of others."""
    every = [*drawn, *((100 + number, 300, False) for number in range(8))]
    with TemporaryDirectory() as folder:
        file, other = Path(folder) / "rows.jsonl", Path(folder) / "other.jsonl"
        file.write_text("\n".join(json.dumps({"text": text(*one)}) for one in every))
        other.write_text("\n".join(json.dumps({"text": text(*one)}) for one in [*every, (200, 300, False)]))
        data = data_spec([str(file)], cut, counts)
        by_length = {length: split_at(data, length, seed) for length in (ORIGINAL, 128, LONGEST)}
        trained = training(data, seed, 128, [str(other)] if elsewhere else None)
    longest = by_length[LONGEST]
    for length, samples in by_length.items():
        for part in PARTS:
            here, there = getattr(samples, part).samples, getattr(longest, part).samples
            assert [one.source for one in here] == [one.source for one in there], "the same documents at every length"
            assert all((one.tokens == two.tokens[:length]).all() for one, two in zip(here, there, strict=True))
        seen = [one.sha256 for part in PARTS for one in getattr(samples, part).samples]
        assert len(seen) == len(set(seen)), "no two alike within any length"
    playing = [one.tokens[:ORIGINAL].tobytes() for part in PARTS for one in getattr(longest, part).samples]
    for document in trained:
        assert len(document) >= ORIGINAL
        assert not any(beginning in document.tobytes() for beginning in playing)


def test_documents_that_begin_alike_count_once(tmp_path: Path) -> None:
    """At the original length they would be one: a search there must not see what is held out."""
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(text(number, 300, header=number < 4))
    with pytest.raises(DataError, match=r"3 of the 4 documents needed have 256 tokens or more .* 3 repeat another"):
        split_at(data_spec([str(tmp_path / "*.txt")], False, (1, 1, 2)), 128, 0)
    samples = split_at(data_spec([str(tmp_path / "*.txt")], False, (1, 1, 1)), 128, 0)
    assert {len(one.tokens) for part in PARTS for one in getattr(samples, part).samples} == {128}


def test_what_is_used_is_found_within_other_documents(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text(n, 600)}) for n in range(3)))
    others = [text(9, LONGEST) + text(0, 300), text(8, 77) + text(1, 300), text(7, 300), "x" + text(2, 300)]
    (tmp_path / "others.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in others))
    data = data_spec([str(tmp_path / "rows.jsonl")], True, (1, 1, 1))
    (kept,) = training(data, 0, 128, [str(tmp_path / "others.jsonl")])
    assert bytes(kept.astype("uint8")).decode() == others[2]


def test_only_as_many_as_are_needed(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(text(number, 300))
    data = data_spec([str(tmp_path / "*.txt")], False, (1, 1, 1))
    assert len(training(data, 0, 128)) == 27
    few = training(data, 0, 128, steps=2, warmup_steps=0)
    assert len(few) == 2, "four times the 128 tokens that are read"
    assert len(training(data, 0, 300, data_form="segments")) == 27
    with pytest.raises(DataError, match=r"no document is left .*: 0 are used in .*, 30 have fewer than the 301 tokens"):
        training(data, 0, 301, data_form="segments")


def test_nothing_left(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(text(number, 300))
    data = data_spec([str(tmp_path / "*.txt")], False, (1, 1, 1))
    with pytest.raises(DataError, match="no document is left to fine-tune on: 3 are used in searches"):
        training(data, 0, 128)


def test_documents_shorter_than_the_window(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(0, 300))
    data = data_spec([str(tmp_path / "*.txt")], False, (1, 1, 1))
    with pytest.raises(DataError, match=r"data\.least_tokens is 256, but 512 tokens of each document are to be read"):
        split_at(data, 512, 0)
