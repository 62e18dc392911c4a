import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factor_search.export.huggingface import huggingface_config
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.finetune.adapters import adapted_layers
from factor_search.finetune.gradients import add_gradients
from factor_search.finetune.sequences import NO_TARGET, Batch, Sequences
from factor_search.finetune.spec import FinetuneSpec
from factor_search.finetune.training import activations_recomputed
from factor_search.finetune.weights import trainable
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.model.losses import token_losses
from tests.families import FAMILIES, tiny_model
from tests.training import ORIGINAL, TARGET, cycles

YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


def batch_of(form: str = "pose", rows: int = 2, **values: Any) -> Batch:
    spec = FinetuneSpec(data_form=form, batch_size=rows, **values)
    return Sequences(cycles(), spec, ORIGINAL, TARGET).step(0)[0]


def gradients_of(
    model: PreTrainedModel, batches: list[Batch], initial_tokens: int = 0, **options: Any
) -> tuple[float, dict[str, Tensor]]:
    """The summed loss, and the gradient of every weight."""
    geometry = read_geometry(model.config)
    factors = Factors.of([1 + 0.3 * i for i in range(geometry.pairs)], initial_tokens, 1.1)
    model.zero_grad(set_to_none=True)
    model.train()
    options = {"weight": 0.1, "precision": torch.float32} | options
    with Injector(model, geometry) as injector:
        loss = sum(add_gradients(model, injector, factors, batch, **options) for batch in batches)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi", "gpt_neox", "gemma2", "cohere"])
@pytest.mark.parametrize("form", ["pose", "segments", "full"])
def test_loss_and_gradients_are_those_of_a_configured_model(model_type: str, form: str) -> None:
    """The independent source: transformers' own longrope, all logits at once, a causal mask of our own."""
    model = tiny_model(model_type, max_position_embeddings=ORIGINAL)
    geometry = read_geometry(model.config)
    factors = Factors.of([1 + 0.3 * i for i in range(geometry.pairs)], 0, 1.1)
    content = huggingface_config(factors_file(factors, FactorsModel.of("m", None, geometry), TARGET), model.config)
    config = AutoConfig.for_model(**json.loads(json.dumps(content)))
    configured = AutoModelForCausalLM.from_config(config, attn_implementation=model.config._attn_implementation).float()
    configured.load_state_dict(model.state_dict())
    batch = batch_of(form)
    loss, gradients = gradients_of(model, [batch], chunk_tokens=22)

    length = batch.input_ids.shape[1]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1).expand(2, 1, -1, -1)
    logits = configured(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        attention_mask=causal,
        use_cache=False,
    ).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction="sum"
    )
    torch.autograd.backward(expected * 0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: p.grad for name, p in configured.named_parameters() if p.grad is not None}
    assert_equal(gradients, theirs, 2e-4)


def test_chunks_of_a_skipping_sequence_see_each_other() -> None:
    """transformers takes skipping positions without a mask for packed sequences."""
    model, batch = tiny_model("llama", max_position_embeddings=ORIGINAL), batch_of("pose", rows=1, seed=3)
    assert (np.diff(batch.position_ids) > 1).any()
    changed = copy.deepcopy(batch)
    changed.input_ids[0, 0] += 1
    late = np.full_like(batch.targets, NO_TARGET)
    late[0, -1] = batch.targets[0, -1]
    losses = [
        gradients_of(model, [Batch(each.input_ids, each.position_ids, late, True)])[0] for each in (batch, changed)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "phi", "deepseek_v3", "gemma3_text"])
@pytest.mark.parametrize("initial_tokens", [0, 5])
def test_checkpointed_gradients_are_the_same(model_type: str, initial_tokens: int) -> None:
    """Also where short batches, with the model's own RoPE, and long ones follow each other."""
    model = tiny_model(model_type, max_position_embeddings=ORIGINAL)
    short = batch_of("full", train_length=16)
    batches = [batch_of("pose"), Batch(short.input_ids, short.position_ids, short.targets, False), batch_of("segments")]
    plain = gradients_of(model, batches, initial_tokens)
    with activations_recomputed(model):
        recomputed = gradients_of(model, batches, initial_tokens)
    assert recomputed[0] == plain[0]
    assert_equal(recomputed[1], plain[1], 1e-6)
    assert_equal(gradients_of(model, batches, initial_tokens)[1], plain[1], 1e-6)


def test_layers_that_compute_their_own_rotations_recompute_the_same() -> None:
    """Some custom models do so within the layer, which the backward pass then enters again."""
    model = tiny_model("llama", max_position_embeddings=ORIGINAL)
    rotary = model.model.rotary_emb
    for layer in model.model.layers:

        def attention(inner: Any = layer.self_attn.forward, **kwargs: Any) -> Any:
            return inner(**kwargs | {"position_embeddings": rotary(kwargs["hidden_states"], kwargs["position_ids"])})

        layer.self_attn.forward = attention
    batches = [batch_of("pose"), batch_of("segments")]
    plain = gradients_of(tiny_model("llama", max_position_embeddings=ORIGINAL), batches, 4)
    with activations_recomputed(model):
        recomputed = gradients_of(model, batches, 4)
    assert recomputed[0] == plain[0]
    assert_equal(recomputed[1], plain[1], 1e-6)


@pytest.mark.parametrize("rope", [YARN, LONGROPE])
def test_short_batches_have_the_models_own_rope(rope: dict[str, Any]) -> None:
    """Whatever RoPE type that is, and whatever has been evaluated before."""
    model = tiny_model("llama", max_position_embeddings=ORIGINAL, rope_parameters=rope)
    drawn = batch_of("full", train_length=16)
    short = Batch(drawn.input_ids, drawn.position_ids, drawn.targets, False)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(drawn.input_ids)).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(drawn.targets).flatten(), reduction="sum"
        ).item()
    for batches in ([short], [batch_of("pose"), short]):
        loss = gradients_of(model, batches)[0] - sum(gradients_of(model, batches[:-1])[0] for _ in batches[1:])
        assert loss == pytest.approx(expected, rel=1e-5)


def test_initial_tokens_are_in_force() -> None:
    model = tiny_model("llama", max_position_embeddings=ORIGINAL)
    geometry = read_geometry(model.config)
    batch = batch_of("full", rows=1)
    known = int((batch.targets != NO_TARGET).sum())
    for initial_tokens in (0, 7):
        factors = Factors.of([1 + 0.3 * i for i in range(geometry.pairs)], initial_tokens, 1.1)
        read = np.append(batch.input_ids, batch.targets[:, -1:], axis=1)[:, : known + 1]
        with Injector(model.eval(), geometry) as injector, injector.using([factors]):
            expected = token_losses(model, torch.from_numpy(read)).sum().item()
        assert gradients_of(model, [batch], initial_tokens)[0] == pytest.approx(expected, rel=1e-5)


def test_autocast_is_near() -> None:
    model = tiny_model("llama", max_position_embeddings=ORIGINAL)
    exact, near = (gradients_of(model, [batch_of()], precision=p)[0] for p in (torch.float32, torch.bfloat16))
    assert near == pytest.approx(exact, rel=0.02)
    assert near != exact


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_merged_adapters_are_the_adapters(model_type: str) -> None:
    model = tiny_model(model_type)
    tokens = torch.from_numpy(cycles(24)[1])[None]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    spec = FinetuneSpec(method={"kind": "lora", "rank": 3, "alpha": 5.0})
    with torch.no_grad():
        plain = model(input_ids=tokens, use_cache=False).logits
        with trainable(model, spec, torch.float32) as weights:
            layers = adapted_layers(model)
            assert layers
            assert not any("lm_head" in place for place in layers)
            model.eval()
            torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, plain, rtol=1e-5, atol=1e-5)
            for name, weight in weights.trained.items():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.05)
            unmerged = model(input_ids=tokens, use_cache=False).logits
        merged = model(input_ids=tokens, use_cache=False).logits
    assert (unmerged - plain).abs().max() > 0.01
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-4)
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in before.items()
    }
    assert not hasattr(model, "peft_config")
    assert all(weight.requires_grad for weight in model.parameters())


def test_what_decays() -> None:
    model = tiny_model("phi", tie_word_embeddings=True)
    with trainable(model, FinetuneSpec(), torch.float32) as weights:
        undecayed = weights.undecayed
        decayed = set(weights.trained) - undecayed
        groups = weights.groups(0.3)
    assert all(name.endswith("weight") and "norm" not in name and "embed" not in name for name in decayed)
    assert {"model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.bias"} <= undecayed
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_few_logits_are_in_memory_at_once() -> None:
    model = tiny_model("llama", max_position_embeddings=ORIGINAL)
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    gradients_of(model, [batch_of("full", rows=2)], chunk_tokens=20)
    hook.remove()
    assert max(seen) == 10
    assert sum(seen) == TARGET
    assert math.ceil(TARGET / 10) == len(seen)
