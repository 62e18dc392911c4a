import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from factor_search.errors import (
    DataError,
    ExportError,
    FactorsError,
    FinetuneError,
    LossNotFiniteError,
    ModelError,
    SpecError,
    UnsupportedModelError,
)
from factor_search.factors import Factors
from factor_search.finetune import training
from factor_search.finetune.run import finetune
from factor_search.finetune.sequences import Sequences
from factor_search.finetune.spec import FinetuneSpec
from factor_search.finetune.training import TrainingStep
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel, load_model
from factor_search.model.losses import token_losses
from factor_search.spec import ModelSpec
from tests.training import TARGET, cycles, factors_for, quick, tiny_loaded, weights_in

LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 16.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama full": ("llama", {}, {"data_form": "full"}),
    "llama pose": ("llama", {}, {"mixed_window": 0.3}),
    "llama segments lora": ("llama", {}, {"data_form": "segments", "method": LORA}),
    "llama tied": ("llama", {"tie_word_embeddings": True}, {}),
    "llama tied lora": ("llama", {"tie_word_embeddings": True}, {"method": LORA, "gradient_checkpointing": True}),
    "qwen3, norms of queries and keys": ("qwen3", {}, {"method": LORA}),
    "phi, partial rotary": ("phi", {}, {"gradient_checkpointing": True}),
    "gpt_neox, partial rotary": ("gpt_neox", {}, {"method": LORA, "batch_tokens": 100}),
    "llama by autocast": ("llama", {}, {"precision": "bfloat16"}),
}


def losses_of(loaded: LoadedModel, factors: Factors, length: int = TARGET) -> torch.Tensor:
    tokens = torch.from_numpy(cycles(length, 3)[2])[None]
    with Injector(loaded.model, loaded.geometry) as injector, injector.using([factors]):
        return token_losses(loaded.model, tokens)


@pytest.mark.parametrize(("model_type", "overrides", "changes"), CASES.values(), ids=CASES)
def test_a_model_learns_and_plain_transformers_loads_it(
    model_type: str, overrides: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    loaded = tiny_loaded(tmp_path / "source", model_type, **overrides)
    factors, spec = factors_for(loaded), quick(steps=16, **changes)
    before = losses_of(loaded, factors).mean()
    reported: list[TrainingStep] = []
    result = finetune(loaded, cycles(), factors, TARGET, spec, tmp_path / "out", reported.append)
    after = losses_of(loaded, factors)
    assert after.mean() < before - 0.5
    assert sum(loss for _, loss in result.losses[-4:]) < sum(loss for _, loss in result.losses[:4])

    plain, information = AutoModelForCausalLM.from_pretrained(result.model, output_loading_info=True)
    assert not any(information[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for length in (TARGET, 20):
        tokens = torch.from_numpy(cycles(length, 3)[2])[None]
        with torch.inference_mode():
            theirs = plain.eval()(input_ids=tokens, labels=tokens).loss.item()
        assert theirs == pytest.approx(losses_of(loaded, factors, length).mean().item(), rel=1e-5)
    assert plain.dtype == torch.float32
    assert plain.config.max_position_embeddings == TARGET
    tied = bool(overrides.get("tie_word_embeddings"))
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    if tied:
        assert "lm_head.weight" not in weights_in(result.model)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert tokenizer("word")["input_ids"] == loaded.tokenizer("word")["input_ids"]
    assert tokenizer.model_max_length == TARGET

    assert [(step.step, step.loss) for step in reported] == list(result.losses)
    assert reported[-1].tokens == result.tokens
    assert reported[0].learning_rate == pytest.approx(1.5e-3)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["finetune.json", "model"]


def test_the_record(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path / "source")
    factors, documents = factors_for(loaded), [*cycles(), np.array([3, 4])]
    result = finetune(loaded, documents, factors, TARGET, quick(), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["schema"] == "factor-search/finetune@1"
    assert FinetuneSpec.model_validate(record["spec"]) == quick()
    assert record["model"]["model"] == loaded.content
    assert record["factors"] == factors.as_json()
    assert (record["documents"], record["left_out_documents"]) == (4, 1) == (result.documents, result.left_out)
    assert record["losses"] == [list(pair) for pair in result.losses]
    assert [step for step, _ in result.losses] == list(range(1, 9))
    assert record["tokens"] == result.tokens == 8 * 2 * 32
    assert record["seconds"] == result.seconds > 0
    assert record["target_length"] == TARGET
    again = finetune(loaded, documents, factors, TARGET, quick(), tmp_path / "out")
    assert again == result


def test_the_precision_of_the_weights_is_kept(tmp_path: Path) -> None:
    """And small steps on them are not lost meanwhile."""
    tiny_loaded(tmp_path / "source")
    loaded = tiny_loaded(tmp_path / "source", dtype="bfloat16")
    frequencies = loaded.model.model.rotary_emb.inv_freq.clone()
    spec = quick(steps=60, learning_rate=1e-4, schedule="constant", weight_decay=0.1)
    result = finetune(loaded, cycles(), factors_for(loaded), TARGET, spec, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(result.model)
    assert plain.dtype == loaded.model.dtype == torch.bfloat16
    assert {weight.dtype for weight in weights_in(result.model).values()} == {torch.bfloat16}
    assert torch.equal(loaded.model.model.rotary_emb.inv_freq, frequencies)
    assert frequencies.dtype == torch.float32
    moved = {
        name: (weight.float() - weights_in(tmp_path / "source")[name]).abs().mean()
        for name, weight in weights_in(result.model).items()
    }
    assert all(distance > 5e-4 for name, distance in moved.items() if "proj" in name), moved


def test_what_is_not_trained_does_not_change(tmp_path: Path) -> None:
    lora = LORA | {"targets": ["q_proj", "0.mlp.up_proj"], "train_norms": False, "train_embeddings": False}
    for name, dtype in (("float32", "auto"), ("bfloat16", "bfloat16")):
        source = tmp_path / name
        loaded = tiny_loaded(source, dtype=dtype)
        if name == "bfloat16":
            loaded.model.save_pretrained(source)
            loaded = tiny_loaded(source, dtype=dtype)
        spec = quick(method=lora, precision=name)
        result = finetune(loaded, cycles(), factors_for(loaded), TARGET, spec, tmp_path / f"out-{name}")
        before, after = weights_in(source), weights_in(result.model)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == {
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        }


@pytest.mark.parametrize(("train_norms", "train_embeddings"), [(True, False), (False, True)])
def test_norms_and_embeddings_beside_adapters(train_norms: bool, train_embeddings: bool, tmp_path: Path) -> None:
    lora = LORA | {"targets": ["q_proj"], "train_norms": train_norms, "train_embeddings": train_embeddings}
    loaded = tiny_loaded(tmp_path / "source", "qwen3")
    result = finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(method=lora), tmp_path / "out")
    before, after = weights_in(tmp_path / "source"), weights_in(result.model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert train_norms == all(("norm" in key) <= (key in changed) for key in before)
    assert train_embeddings == ("model.embed_tokens.weight" in changed)
    assert "lm_head.weight" not in changed


def test_initial_tokens(tmp_path: Path) -> None:
    """They are used in training, and refused before it unless drop_initial_tokens is set."""
    loaded = tiny_loaded(tmp_path / "source")
    factors = factors_for(loaded, initial_tokens=6)
    with pytest.raises(ExportError, match="6 initial tokens"):
        finetune(loaded, cycles(), factors, TARGET, quick(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    spec = quick(drop_initial_tokens=True, data_form="full", batch_size=1)
    document = cycles(TARGET)[2]
    expected = losses_of(loaded, factors).mean().item()
    assert expected != pytest.approx(losses_of(loaded, factors_for(loaded)).mean().item(), rel=1e-5)
    result = finetune(loaded, [document], factors, TARGET, spec, tmp_path / "out")
    assert result.losses[0][1] == pytest.approx(expected, rel=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(result.model).eval()
    with torch.inference_mode():
        theirs = plain(input_ids=torch.from_numpy(document)[None], labels=torch.from_numpy(document)[None]).loss.item()
    assert theirs == pytest.approx(losses_of(loaded, factors_for(loaded)).mean().item(), rel=1e-5)
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["factors"]["initial_tokens"] == 6


def test_the_output_is_the_next_ones_model(tmp_path: Path) -> None:
    """A chain of extensions: the second fine-tuning starts from the first one's checkpoint."""
    loaded = tiny_loaded(tmp_path / "source")
    first = finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(), tmp_path / "first")
    second = load_model(ModelSpec(id=str(first.model), device="cpu"))
    assert second.geometry.original_length == 32
    spec = quick(train_length=48, mixed_window=0.4)
    result = finetune(second, cycles(), factors_for(second), 128, spec, tmp_path / "second")
    assert AutoModelForCausalLM.from_pretrained(result.model).config.max_position_embeddings == 128


def test_losses_that_are_not_finite_end_it(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path / "source")
    spec = quick(schedule="constant").model_copy(update={"learning_rate": 1e30})  # beyond what may be asked for
    with pytest.raises(LossNotFiniteError, match=r"the (loss|gradient) of step [23] is not finite"):
        finetune(loaded, cycles(), factors_for(loaded), TARGET, spec, tmp_path / "out")
    with pytest.raises(ModelError, match="load the model again"):
        finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(), tmp_path / "out")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_lack_of_memory_says_what_helps(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> float:
        raise error

    monkeypatch.setattr(training, "add_gradients", fail)
    loaded = tiny_loaded(tmp_path / "source")
    with pytest.raises(FinetuneError, match=r"2 x 32 tokens .* smaller batch_size, gradient_checkpointing, method"):
        finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(), tmp_path / "out")


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded(tmp_path / "source")
    factors, out = factors_for(loaded), tmp_path / "out"
    with pytest.raises(DataError, match="the 96 tokens"):
        finetune(loaded, cycles(90), factors, TARGET, quick(data_form="full"), out)
    with pytest.raises(DataError, match="the model's own tokenizer"):
        finetune(loaded, [tokens + 90 for tokens in cycles()], factors, TARGET, quick(), out)
    with pytest.raises(FactorsError):
        finetune(loaded, cycles(), Factors.of([2.0] * 3), TARGET, quick(), out)
    with pytest.raises(SpecError, match="beyond the target length"):
        finetune(loaded, cycles(), factors, TARGET, quick(train_length=97), out)
    proportional = tiny_loaded(tmp_path / "gemma4", "gemma4_text")
    with pytest.raises(ExportError, match="proportional"):
        finetune(proportional, cycles(), factors_for(proportional), TARGET, quick(), out)
    monkeypatch.setattr(type(loaded.model), "supports_gradient_checkpointing", False)
    with pytest.raises(UnsupportedModelError, match="no gradient checkpointing"):
        finetune(loaded, cycles(), factors, TARGET, quick(gradient_checkpointing=True), out)
    assert not any(out.rglob("*.*"))
    with pytest.raises(SpecError, match=r"'qproj' matches no linear layer .* k_proj"):
        finetune(loaded, cycles(), factors, TARGET, quick(method=LORA | {"targets": ["qproj"]}), out)


def test_adapters_need_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = tiny_loaded(tmp_path / "source")
    with pytest.raises(FinetuneError, match=r"pip install 'factor-search\[finetune\]'"):
        finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(method="lora"), tmp_path / "out")


def test_the_updates_are_adamw(tmp_path: Path) -> None:
    """Against the equations of 1711.05101, algorithm 2, on gradients of plain transformers."""
    loaded = tiny_loaded(tmp_path / "source")
    factors = factors_for(loaded)
    spec = quick(
        steps=3, weight_decay=0.2, max_grad_norm=0.7, gradient_accumulation=2, learning_rate=1e-2, schedule="constant"
    )
    rates = [0.5e-2, 1e-2, 1e-2]
    reference = tiny_loaded(tmp_path / "source").model
    weights = dict(reference.named_parameters())
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    sequences = Sequences(cycles(), spec, 32, TARGET)
    with Injector(reference, loaded.geometry) as injector, injector.using([factors]):
        for step, rate in enumerate(rates):
            reference.zero_grad()
            batches = sequences.step(step)
            read = {
                name: torch.from_numpy(np.concatenate([getattr(batch, name) for batch in batches]))
                for name in ("input_ids", "position_ids", "targets")
            }
            targets = read.pop("targets").flatten()
            logits = reference(**read, attention_mask=torch.ones_like(read["input_ids"]), use_cache=False).logits
            torch.autograd.backward(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets))
            norm = torch.stack([weight.grad.square().sum() for weight in weights.values()]).sum().sqrt().item()
            assert norm > 0.7
            for name, weight in weights.items():
                gradient, (first, second) = weight.grad * 0.7 / norm, moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.95).add_(0.05 * gradient**2)
                decay = 0.0 if "norm" in name or "embed" in name else 0.2
                direction = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                weight.data -= rate * (direction + decay * weight.data)
    result = finetune(loaded, cycles(), factors, TARGET, spec, tmp_path / "out")
    for name, weight in weights_in(result.model).items():
        torch.testing.assert_close(weight, weights[name].detach(), rtol=1e-3, atol=1e-4)


def test_weights_are_whole_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    loaded = tiny_loaded(tmp_path / "source", vocab_size=5000)
    result = finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(steps=1), tmp_path / "out")
    assert not any(item.is_symlink() for item in result.model.iterdir())
    assert weights_in(result.model)["lm_head.weight"].nbytes > 2**20


def test_adapters_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def losses(random_state: int, seed: int) -> object:
        torch.manual_seed(random_state)
        loaded = tiny_loaded(tmp_path / "source")
        out = tmp_path / f"{random_state}-{seed}"
        return finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(method="lora", seed=seed), out).losses

    tiny_loaded(tmp_path / "source")
    assert losses(1, 0) == losses(2, 0) != losses(2, 1)


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path / "source")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(method="lora"), tmp_path / "out")
    assert torch.equal(torch.rand(3), expected)
    assert all("forward" not in module.__dict__ for module in loaded.model.modules())
    assert not loaded.model.training
    with safe_open(tmp_path / "out" / "model" / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key]  # noqa: SIM118
    assert math.isfinite(losses_of(loaded, factors_for(loaded)).sum().item())
