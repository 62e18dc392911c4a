"""Divergence from the untouched model in short texts: exact, without a trace, in every report."""

import numpy as np
import pytest
import torch

from factor_search.factors import Factors
from factor_search.measure.divergence import DivergenceSamples
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.methods import closed_form, untouched
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.model.losses import divergences, token_losses
from factor_search.spec import ModelSpec
from factor_search.testbed import CHECKPOINT
from factor_search.text.samples import Sample, SampleSet, sample_of


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelSpec(id=str(CHECKPOINT), device="cpu"))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 200))


def expected(loaded: LoadedModel, reference: Factors, factors: Factors, row: np.ndarray) -> torch.Tensor:
    """In float64, from whole logits of separate passes."""
    ids, found = torch.from_numpy(row)[None], []
    with torch.inference_mode(), Injector(loaded.model, loaded.geometry) as injector:
        for one in (reference, factors):
            with injector.using([one]):
                found.append(loaded.model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1))
    first, second = found
    return torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("chunk", [None, 7, 64])
def test_divergences_equal_those_of_whole_logits(loaded: LoadedModel, tokens: np.ndarray, chunk: int | None) -> None:
    reference = untouched(loaded.geometry)
    yarn, interpolated = (closed_form(name, loaded.geometry, 2048) for name in ("yarn", "pi"))
    ids = torch.from_numpy(tokens[:2]).repeat(2, 1)
    injector = Injector(loaded.model, loaded.geometry)
    with injector, injector.using([reference, reference, yarn, interpolated]):
        found = divergences(loaded.model, ids, chunk_tokens=chunk)
    assert found.shape == (2, 199)
    for row, one, values in zip(tokens, (yarn, interpolated), found, strict=False):
        wanted = expected(loaded, reference, one, row)
        assert wanted.mean() > 0.01
        assert torch.allclose(values.double(), wanted, atol=2e-5, rtol=1e-4)


def test_an_evaluation_against_a_reference(loaded: LoadedModel, tokens: np.ndarray) -> None:
    reference, yarn = untouched(loaded.geometry), closed_form("yarn", loaded.geometry, 2048)
    samples = tuple(sample_of(str(n), row) for n, row in enumerate(tokens))
    plain, against = SampleSet("divergence", samples), DivergenceSamples("divergence", samples, reference)
    ids = torch.from_numpy(tokens[:1])
    before = token_losses(loaded.model, ids)
    with LocalEvaluator(loaded, 2048) as evaluator:
        found = evaluator.evaluate(yarn, against)
        nothing = evaluator.evaluate(reference, against)
        losses = evaluator.evaluate(yarn, plain)
        keys = {evaluator.key(yarn, one) for one in (plain, against, DivergenceSamples("divergence", samples, yarn))}
        assert evaluator.earlier_key(yarn, against) is None
    assert torch.equal(token_losses(loaded.model, ids), before)
    assert found.losses == pytest.approx(
        [expected(loaded, reference, yarn, row).mean().item() for row in tokens], rel=1e-4
    )
    assert found.tokens == (199,) * 3
    assert nothing.losses == pytest.approx((0.0,) * 3, abs=1e-7)
    assert losses.losses != found.losses
    assert len(keys) == 3
    assert against.sha256 != plain.sha256


def test_a_divergence_is_measured_on_all_tokens() -> None:
    one = Sample("a", np.arange(5), "0", scored=(2, 3))
    with pytest.raises(ValueError, match="all tokens"):
        DivergenceSamples("divergence", (one,), Factors.of([1.0]))
