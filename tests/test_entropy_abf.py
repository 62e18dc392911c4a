"""The factor of Entropy-ABF on queries, against an attention computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.entropy_abf import FIRST_LAYER, query_factors, scaled_queries
from factor_search.model.loading import load_model
from factor_search.spec import ModelSpec
from tests.conftest import save_checkpoint
from tests.families import tiny_model


def test_the_factor_of_a_position() -> None:
    found = query_factors(300, 64).numpy()
    expected = [max(1.0, math.log(i + 1) / math.log(64)) for i in range(300)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    assert found[63] == 1.0
    assert found[64] > 1.0


def test_queries_are_scaled_from_the_third_layer_on(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model("llama", num_hidden_layers=4), tmp_path / "model")
    loaded = load_model(ModelSpec(id=str(folder), device="cpu", attention="sdpa"))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 90, (1, 200)))
    own, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], list[tuple[int, torch.Tensor]]()

    def watch(module: torch.nn.Module, query: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append((int(module.layer_idx), query.clone()))  # type: ignore[arg-type]
        return own(module, query, *args, **kwargs)

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", watch)
        plain = loaded.model(ids, use_cache=False).logits
        with scaled_queries(64):
            scaled = loaded.model(ids, use_cache=False).logits
    first, second = dict(seen[:4]), dict(seen[4:])
    assert list(second) == [0, 1, 2, 3]
    torch.testing.assert_close(second[1], first[1])
    torch.testing.assert_close(second[FIRST_LAYER], first[FIRST_LAYER] * query_factors(200, 64).float()[:, None])
    torch.testing.assert_close(scaled[:, :64], plain[:, :64])
    assert not torch.allclose(scaled[:, 100:], plain[:, 100:])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids, use_cache=False).logits, plain)
