from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factor_search import evaluation
from factor_search.evaluation import DIVERGED, OK, OUT_OF_MEMORY, LocalEvaluator
from factor_search.factors import Factors
from factor_search.ledger import Ledger, RecordedEvaluator
from factor_search.models import LoadedModel, load_model
from factor_search.perplexity import token_losses
from factor_search.samples import Sample, SampleSet
from factor_search.spec import ModelSpec

FACTORS = Factors.of([1.0 + 0.5 * i for i in range(8)], attention_factor=1.1)


def sample_set(seed: int = 0, count: int = 3) -> SampleSet:
    rng = np.random.default_rng(seed)
    return SampleSet("search", tuple(Sample(str(n), rng.integers(0, 257, 128), f"{seed}-{n}") for n in range(count)))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(id=str(checkpoint)))


def test_losses_and_their_ladder(loaded: LoadedModel) -> None:
    samples = sample_set()
    with LocalEvaluator(loaded, 128) as evaluator:
        result = evaluator.evaluate(FACTORS, samples)
        with evaluator._injector.using([FACTORS]):
            expected = [
                token_losses(loaded.model, torch.from_numpy(s.tokens)[None])[0].double() for s in samples.samples
            ]
    assert result.outcome == OK
    assert result.tokens == (127,) * 3
    assert result.losses == pytest.approx([losses.mean().item() for losses in expected], rel=1e-12)
    assert list(result.losses_at) == [64, 128]
    assert result.losses_at[64] == pytest.approx([losses[:63].mean().item() for losses in expected], rel=1e-12)
    assert result.losses_at[128] == result.losses


def test_a_prefix_of_a_sample_has_the_loss_of_a_shorter_sample(loaded: LoadedModel) -> None:
    samples = sample_set()
    short = SampleSet("search", tuple(replace(s, tokens=s.tokens[:64]) for s in samples.samples))
    with LocalEvaluator(loaded, 128) as evaluator:
        long = evaluator.evaluate(FACTORS, samples)
    with LocalEvaluator(loaded, 64) as evaluator:
        assert evaluator.evaluate(FACTORS, short).losses == pytest.approx(long.losses_at[64], rel=1e-5)


def test_the_key_changes_with_everything_the_losses_depend_on(loaded: LoadedModel) -> None:
    def key(
        model: LoadedModel = loaded,
        length: int = 128,
        stride: int | None = None,
        factors: Factors = FACTORS,
        samples: SampleSet = sample_set(),  # noqa: B008
    ) -> str:
        return LocalEvaluator(model, length, stride).key(factors, samples)

    keys = [
        key(),
        key(model=replace(loaded, content="other weights")),
        key(model=replace(loaded, geometry=replace(loaded.geometry, original_length=32))),
        key(length=127),
        key(stride=64),
        key(factors=replace(FACTORS, initial_tokens=1)),
        key(factors=replace(FACTORS, attention_factor=1.2)),
        key(factors=Factors.of([1.0] * 8, attention_factor=1.1)),
        key(samples=sample_set(seed=1)),
        key(samples=sample_set(count=2)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_divergence_is_an_outcome(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "token_losses", lambda model, ids: torch.full((1, 127), float("nan")))
    with LocalEvaluator(loaded, 128) as evaluator:
        result = evaluator.evaluate(FACTORS, sample_set())
    assert (result.outcome, result.losses, result.loss) == (DIVERGED, (), float("inf"))


def test_lack_of_memory_is_an_outcome_and_tried_again_by_the_next_process(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched, LocalEvaluator(loaded, 128) as evaluator:
        patched.setattr(evaluation, "token_losses", lambda model, ids: torch.empty(2**52))  # a real refusal
        with Ledger(tmp_path / "evaluations.jsonl") as ledger:
            recorded = RecordedEvaluator(evaluator, ledger)
            assert next(recorded.evaluate_all([FACTORS], sample_set())).outcome == OUT_OF_MEMORY
            assert ledger.get(recorded.key(FACTORS, sample_set())) is not None
    for _ in range(2):
        with Ledger(tmp_path / "evaluations.jsonl") as ledger, LocalEvaluator(loaded, 128) as evaluator:
            assert next(RecordedEvaluator(evaluator, ledger).evaluate_all([FACTORS], sample_set())).outcome == OK
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 2


def test_other_runtime_errors_are_not_hidden(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, ids: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(evaluation, "token_losses", fail)
    with LocalEvaluator(loaded, 128) as evaluator, pytest.raises(RuntimeError, match="a bug"):
        evaluator.evaluate(FACTORS, sample_set())
