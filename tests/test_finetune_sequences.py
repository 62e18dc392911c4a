import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factor_search.errors import DataError, SpecError
from factor_search.files.json_documents import explain
from factor_search.finetune.rate import learning_rate
from factor_search.finetune.sequences import NO_TARGET, Batch, Sequences
from factor_search.finetune.spec import FinetuneSpec

shapes = st.tuples(st.integers(8, 40), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**53 - 1))
"""Original length, scale, chunks, seed."""


def counting(tokens: int) -> np.ndarray:
    """A document whose tokens are their positions."""
    return np.arange(tokens, dtype=np.int64)


def batches(steps: int, documents: list[np.ndarray], original: int, target: int, **values: object) -> list[Batch]:
    sequences = Sequences(documents, FinetuneSpec.model_validate(values), original, target)
    return list(itertools.chain.from_iterable(sequences.step(step) for step in range(steps)))


@given(shapes, st.sampled_from(["pose", "segments", "full"]))
@settings(max_examples=60, deadline=None)
def test_positions_increase_within_the_target_and_targets_follow(shape: tuple[int, ...], form: str) -> None:
    original, scale, chunks, seed = shape
    target = original * scale
    values = {"data_form": form, "chunks": chunks, "seed": seed, "batch_size": 3}
    for batch in batches(3, [counting(target + 7), counting(target).astype(np.uint16)], original, target, **values):
        assert batch.rescaled
        assert batch.input_ids.shape == (3, target if form == "full" else original)
        assert batch.input_ids.dtype == batch.position_ids.dtype == batch.targets.dtype == np.int64
        skips = np.diff(batch.position_ids)
        assert (skips > 0).all()
        assert ((skips != 1).sum(axis=1) < chunks).all()
        assert batch.position_ids.min() >= 0
        assert batch.position_ids.max() < target
        known = batch.targets != NO_TARGET
        assert (batch.targets[known] == batch.input_ids[known] + 1).all()
        assert (batch.input_ids[~known] >= target - 1).all(), "only where the document ends"
        starts = batch.input_ids - batch.position_ids
        if form == "pose":
            assert (batch.position_ids[:, 0] == 0).all()
            assert (np.diff(batch.input_ids) == 1).all(), "the text is whole"
        else:
            assert (starts == starts[:, :1]).all(), "positions are those in the text"


@pytest.mark.parametrize("form", ["pose", "segments"])
@pytest.mark.parametrize("chunks", [2, 3])
def test_every_distance_below_the_target_occurs(form: str, chunks: int) -> None:
    found: set[int] = set()
    for batch in batches(1500, [counting(24)], 8, 24, data_form=form, chunks=chunks):
        row = batch.position_ids[0]
        found |= set((row[:, None] - row[None, :]).ravel().tolist())
    assert {distance for distance in found if distance > 0} == set(range(1, 24))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    documents = [counting(200), counting(90)]
    spec = FinetuneSpec(batch_size=2, gradient_accumulation=2, mixed_window=0.5)
    whole = [Sequences(documents, spec, 16, 64).step(step) for step in range(6)]
    again = Sequences(documents, spec, 16, 64)
    for step in (5, 0, 3):
        for one, other in zip(whole[step], again.step(step), strict=True):
            assert one.rescaled == other.rescaled
            for name in ("input_ids", "position_ids", "targets"):
                assert (getattr(one, name) == getattr(other, name)).all()
    drawn = [batch.input_ids.tobytes() + batch.position_ids.tobytes() for step in whole for batch in step]
    assert len(set(drawn)) == len(drawn), "no two alike"
    reseeded = Sequences(documents, spec.model_copy(update={"seed": 1}), 16, 64).step(0)
    assert reseeded[0].input_ids.tobytes() != whole[0][0].input_ids.tobytes()


@given(shapes, st.sampled_from(["pose", "segments", "full"]), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_every_sequence_begins_with_the_prefix(shape: tuple[int, ...], form: str, count: int) -> None:
    original, scale, chunks, seed = shape
    target = original * scale
    spec = FinetuneSpec.model_validate({"data_form": form, "chunks": chunks, "seed": seed, "mixed_window": 0.3})
    documents, prefix = [counting(2 * target)], [900, 901, 902][:count]
    plain = Sequences(documents, spec, original, target)
    begun = Sequences(documents, spec, original, target, prefix)
    assert plain.sha256 != begun.sha256
    for without, batch in zip(plain.step(0), begun.step(0), strict=True):
        assert (batch.input_ids[:, :count] == prefix).all()
        assert (batch.position_ids[:, :count] == np.arange(count)).all()
        assert (np.diff(batch.position_ids) > 0).all()
        assert (batch.targets[:, : count - 1] == NO_TARGET).all()
        assert (batch.targets[:, count - 1 :] == without.targets[:, count - 1 :]).all()
        assert (batch.input_ids[:, count:] == without.input_ids[:, count:]).all()


def test_documents_are_drawn_by_their_tokens() -> None:
    documents = [np.full(900, 1, dtype=np.int64), np.full(100, 2, dtype=np.int64)]
    first = [batch.input_ids[0, 0] for batch in batches(2000, documents, 8, 16)]
    assert first.count(2) == pytest.approx(200, abs=60)


def test_mixed_windows() -> None:
    values = {"data_form": "full", "mixed_window": 0.25, "batch_size": 2}
    drawn = batches(400, [counting(100)], 8, 32, **values)
    short = [batch for batch in drawn if not batch.rescaled]
    assert len(short) == pytest.approx(100, abs=30)
    for batch in short:
        assert batch.input_ids.shape == (8, 8), "as many tokens as two long ones"
        assert (batch.position_ids == np.arange(8)).all()
        assert (np.diff(batch.input_ids) == 1).all()


def test_what_is_too_short_is_left_out() -> None:
    documents = [counting(63), counting(64), counting(20)]
    spec = FinetuneSpec(data_form="segments")
    assert Sequences(documents, spec, 16, 64).left_out == 2
    assert Sequences(documents, FinetuneSpec(data_form="full"), 16, 64).left_out == 2
    assert Sequences(documents, FinetuneSpec(data_form="pose"), 16, 64).left_out == 0
    assert Sequences(documents, FinetuneSpec(data_form="full", train_length=30), 16, 64).left_out == 1
    with pytest.raises(DataError, match=r"none of the 3 documents has the 65 tokens .* the longest has 64"):
        Sequences(documents, spec, 16, 65)
    with pytest.raises(DataError, match="none of the 0 documents"):
        Sequences([], spec, 16, 65)


@pytest.mark.parametrize("tokens", [[3, 97, 5], [-1, 3, 4]])
def test_tokens_of_another_vocabulary_are_refused(tokens: list[int]) -> None:
    sequences = Sequences([np.array(tokens * 10)], FinetuneSpec(), 8, 16)
    with pytest.raises(DataError, match="the model's own tokenizer"):
        sequences.check_vocabulary(97)


def test_the_hash_is_of_all_tokens_in_order() -> None:
    def digest(*documents: np.ndarray) -> str:
        return Sequences(documents, FinetuneSpec(), 8, 16).sha256

    one, other = counting(20), counting(21)
    assert len({digest(one, other), digest(other, one), digest(one), digest(one + 1)}) == 4
    assert digest(one.astype(np.int32)) == digest(one)


def test_tokens_of_a_step() -> None:
    def passes(**values: object) -> int:
        return Sequences([counting(50)], FinetuneSpec.model_validate(values), 16, 32).passes

    assert passes() == 1
    assert passes(gradient_accumulation=3) == 3
    assert passes(batch_tokens=32, batch_size=2) == 1
    assert passes(batch_tokens=33, batch_size=2) == 2


def test_the_learning_rate() -> None:
    spec = FinetuneSpec(steps=12, warmup_steps=4, learning_rate=1.0)
    rates = [learning_rate(spec, step) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[4:]))
    constant = spec.model_copy(update={"schedule": "constant"})
    assert [learning_rate(constant, step) for step in (0, 3, 11)] == [0.25, 1.0, 1.0]
    assert learning_rate(spec.model_copy(update={"warmup_steps": 0}), 0) == 1.0


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"stepz": 3}, "stepz: unknown key"),
        ({"steps": 0}, "steps: "),
        ({"steps": "3"}, "steps: "),
        ({"data_form": "passkey"}, "data_form: "),
        ({"method": {"kind": "lora", "rang": 4}}, "rang: unknown key"),
        ({"method": "prefix"}, "method: "),
        ({"batch_tokens": 64, "gradient_accumulation": 2}, "either 'batch_tokens'"),
        ({"train_length": 4, "chunks": 5}, "5 chunks do not fit"),
        ({"mixed_window": 1.0}, "mixed_window: "),
        ({"learning_rate": float("nan")}, "learning_rate: "),
    ],
)
def test_bad_specifications(document: object, complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FinetuneSpec.model_validate(document)
    assert complaint in explain(caught.value)


def test_specifications() -> None:
    spec = FinetuneSpec.model_validate({"method": "lora"})
    assert spec.method.kind == "lora"
    assert FinetuneSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec.sha256 == spec.model_copy(update={"checkpoint_every": 1}).sha256 != FinetuneSpec().sha256
    with pytest.raises(SpecError, match="beyond the target length of 64"):
        FinetuneSpec(train_length=65).sequence_length(16, 64)
    with pytest.raises(SpecError, match="20 chunks"):
        FinetuneSpec(chunks=20).sequence_length(16, 64)
