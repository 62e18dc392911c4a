"""Factors in force in a plain transformers model: in generation, in compiled models, and gone afterwards."""

import copy
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CompileConfig,
    Gemma3ForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    StaticCache,
)

import factor_search as fs
from factor_search.errors import FactorsError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from tests.families import FAMILIES, SMALL, tiny_model
from tests.test_injection import multimodal

FACTORS = Factors.of([1.0 + 0.6 * i for i in range(8)], initial_tokens=6, attention_factor=1.2)
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "rope_scaling": {
            "rope_type": "longrope",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0 + i for i in range(8)],
        }
    },
}


def ids(rows: int = 1, length: int = 80, seed: int = 1) -> Tensor:
    return torch.randint(3, 95, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        computed: Tensor = model(input_ids=tokens, **arguments).logits
    return computed


def generated(model: PreTrainedModel, tokens: Tensor, **arguments: Any) -> Any:
    return model.generate(
        tokens, do_sample=False, output_logits=True, return_dict_in_generate=True, eos_token_id=None, **arguments
    )


def leftovers(model: nn.Module) -> list[Any]:
    """Everything of a model that applied factors might change, by identity."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found += [name, id(module), sorted((key, id(value)) for key, value in vars(module).items())]
        found += sorted((key, id(value)) for key, value in module._buffers.items())
        found += [
            len(module._forward_pre_hooks),
            len(module._forward_pre_hooks_with_kwargs),
            len(module._forward_hooks),
        ]
    return [*found, *((key, id(value)) for key, value in model.named_parameters()), *model.state_dict()]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("base", SCALINGS)
def test_cached_generation_equals_recomputation_across_the_original_length(base: str, cache: str) -> None:
    """Token by token, from a prompt that ends before the original length to a text that ends beyond it."""
    model = tiny_model("llama", **SCALINGS[base])
    with fs.apply(model, FACTORS):
        answer = generated(model, ids(1, 20), max_new_tokens=60, cache_implementation=cache)
        assert answer.sequences.shape == (1, 80)
        for step, cached in enumerate(answer.logits):
            recomputed = logits(model, answer.sequences[:, : 20 + step], use_cache=False)[:, -1]
            torch.testing.assert_close(cached, recomputed, rtol=1e-4, atol=1e-4)
        plain = Factors.of(FACTORS.rescale_factors, 0, FACTORS.attention_factor)
    with fs.apply(model, plain):
        without = logits(model, answer.sequences)
    assert (without[:, -1] - answer.logits[-1]).abs().max() > 0.01, "initial tokens make a difference"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_generation_of_every_family(model_type: str) -> None:
    model = tiny_model(model_type)
    pairs = read_geometry(model.config).pairs
    with fs.apply(model, Factors.of([1.0 + 0.6 * i for i in range(pairs)], 6, 1.2)):
        answer = generated(model, ids(1, 60), max_new_tokens=8)
        for step, cached in enumerate(answer.logits):
            recomputed = logits(model, answer.sequences[:, : 60 + step], use_cache=False)[:, -1]
            torch.testing.assert_close(cached, recomputed, rtol=1e-3, atol=1e-3)
        static = generated(model, ids(1, 60), max_new_tokens=8, cache_implementation="static")
        assert torch.equal(static.sequences, answer.sequences)


def test_a_longrope_model_that_drops_its_cache_at_the_original_length() -> None:
    """Phi-3 computes its cache again where its own factors would switch."""
    lists = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    model = tiny_model(
        "phi3", original_max_position_embeddings=32, rope_scaling={"rope_type": "longrope", "factor": 2.0, **lists}
    )
    with fs.apply(model, FACTORS):
        answer = generated(model, ids(1, 28), max_new_tokens=10)
        for step, cached in enumerate(answer.logits):
            recomputed = logits(model, answer.sequences[:, : 28 + step], use_cache=False)[:, -1]
            torch.testing.assert_close(cached, recomputed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", SCALINGS)
def test_it_computes_what_a_search_evaluates(base: str) -> None:
    """Bit for bit, for an input of the target length."""
    model = tiny_model("llama", **SCALINGS[base])
    geometry = read_geometry(model.config)
    tokens = ids(2, 200)
    with Injector(model, geometry) as injector, injector.using([FACTORS]):
        expected = logits(model, tokens)
    file = factors_file(FACTORS, FactorsModel.of("m", None, geometry), 200)
    with fs.apply(model, file):
        assert torch.equal(logits(model, tokens), expected)


def padded(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows padded on the left to the same length, and their attention mask."""
    longest = max(row.shape[1] for row in tokens)
    rows = [nn.functional.pad(row, (longest - row.shape[1], 0)) for row in tokens]
    masks = [nn.functional.pad(torch.ones_like(row), (longest - row.shape[1], 0)) for row in tokens]
    return torch.cat(rows), torch.cat(masks)


def test_left_padded_batches() -> None:
    """Each row as if it were alone: in a bare forward, with a cache, and in generation."""
    model = tiny_model("llama")
    alone = [ids(1, 70, 1), ids(1, 41, 2), ids(1, 9, 3)]
    tokens, mask = padded(alone)
    with fs.apply(model, FACTORS):
        together = logits(model, tokens, attention_mask=mask)
        first = model(input_ids=tokens[:, :-5], attention_mask=mask[:, :-5])
        rest = logits(model, tokens[:, -5:], attention_mask=mask, past_key_values=first.past_key_values)
        texts = generated(model, tokens, attention_mask=mask, max_new_tokens=8).sequences
        for row, text in enumerate(alone):
            expected = logits(model, text)[0]
            torch.testing.assert_close(together[row, -text.shape[1] :], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(rest[row], expected[-5:], rtol=1e-4, atol=1e-4)
            assert torch.equal(texts[row, -8:], generated(model, text, max_new_tokens=8).sequences[0, -8:])
        counted_from_the_padding = torch.arange(70)[None]
        wrong = logits(model, tokens, attention_mask=mask, position_ids=counted_from_the_padding)
    assert (wrong[2, -1] - together[2, -1]).abs().max() > 0.01, "position ids matter, and given ones are respected"


def test_left_padded_batch_of_a_multimodal_model() -> None:
    model = multimodal()
    tokens, mask = padded([ids(1, 70, 1), ids(1, 9, 3)])
    with fs.apply(model, FACTORS):
        together = logits(model, tokens, attention_mask=mask)
        torch.testing.assert_close(together[1, -9:], logits(model, ids(1, 9, 3))[0], rtol=1e-4, atol=1e-4)


def gemma3_with_images() -> PreTrainedModel:
    """A Gemma 3 that makes masks for each layer type of an attention mask before it calls its decoder."""
    config = AutoConfig.for_model("gemma3")
    for name, value in (SMALL | {"layer_types": ["sliding_attention", "full_attention"]}).items():
        setattr(config.text_config, name, value)
    for name, value in {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28}.items():
        setattr(config.vision_config, name, value)
    config.vision_config.num_attention_heads, config.mm_tokens_per_image = 4, 4
    config.image_token_id, config.boi_token_id, config.eoi_token_id = 94, 92, 93
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(config).eval()


def test_left_padded_batch_of_a_model_that_changes_the_mask() -> None:
    model = gemma3_with_images()
    before = leftovers(model)
    alone = [ids(1, 70, 1) % 90, ids(1, 9, 3) % 90]
    tokens, mask = padded(alone)
    types = torch.zeros_like(tokens)
    pairs = read_geometry(model.config).pairs
    applied = fs.apply(model, Factors.of([1.0 + 0.6 * i for i in range(pairs)], 6, 1.2))
    for arguments in ({}, {"token_type_ids": types}):
        together = logits(model, tokens, attention_mask=mask, **arguments)
        for row, text in enumerate(alone):
            expected = logits(model, text)[0]
            torch.testing.assert_close(together[row, -text.shape[1] :], expected, rtol=1e-4, atol=1e-4)
    inner = model.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    expected = model.model(input_ids=alone[1]).last_hidden_state
    torch.testing.assert_close(inner[1, -9:], expected[0], rtol=1e-4, atol=1e-4)
    counted_from_the_padding = torch.arange(70)[None]
    wrong = logits(model, tokens, attention_mask=mask, position_ids=counted_from_the_padding)
    assert (wrong[1, -1] - together[1, -1]).abs().max() > 0.001, "given position ids are respected"
    applied.restore()
    assert leftovers(model) == before


def test_left_padded_batch_of_a_model_that_counts_from_1() -> None:
    """PaliGemma; one position more or less changes which tokens are initial ones."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **SMALL},
        vision_config={"model_type": "siglip_vision_model", "num_attention_heads": 4, **vision},
        image_token_id=94,
    )
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).eval()
    alone = [ids(1, 70, 1) % 90, ids(1, 9, 3) % 90]
    tokens, mask = padded(alone)
    with fs.apply(model, Factors.of([1.0 + 0.6 * i for i in range(read_geometry(config).pairs)], 6, 1.2)):
        together = logits(model, tokens, attention_mask=mask, token_type_ids=torch.ones_like(tokens))
        for row, text in enumerate(alone):
            causal = {"token_type_ids": torch.ones_like(text)}
            expected = logits(model, text, **causal)[0]
            torch.testing.assert_close(together[row, -text.shape[1] :], expected, rtol=1e-4, atol=1e-4)
            given = logits(model, text, position_ids=torch.arange(text.shape[1])[None], **causal)[0]
            assert (given - expected).abs().max() > 1e-3, "the first position makes a difference"


def test_left_padded_batch_with_a_static_cache_and_a_mask_of_its_length() -> None:
    model = tiny_model("llama")
    alone = [ids(1, 30, 1), ids(1, 17, 2)]
    tokens, mask = padded(alone)
    cache = StaticCache(config=model.config, max_cache_len=48)
    with fs.apply(model, FACTORS):
        logits(model, tokens[:, :-4], attention_mask=mask[:, :-4], past_key_values=cache)
        rest = logits(model, tokens[:, -4:], attention_mask=mask, past_key_values=cache)
        for row, text in enumerate(alone):
            torch.testing.assert_close(rest[row], logits(model, text)[0, -4:], rtol=1e-4, atol=1e-4)


def test_beams_and_assisted_generation() -> None:
    model, assistant = tiny_model("llama"), tiny_model("llama", num_hidden_layers=1)
    with fs.apply(model, FACTORS):
        beams = generated(model, ids(1, 58), max_new_tokens=10, num_beams=3).sequences
        uncached = generated(model, ids(1, 58), max_new_tokens=10, num_beams=3, use_cache=False).sequences
        assert torch.equal(beams, uncached)
        greedy = generated(model, ids(1, 58), max_new_tokens=10).sequences
        assert torch.equal(generated(model, ids(1, 58), max_new_tokens=10, assistant_model=assistant).sequences, greedy)
    assert not torch.equal(generated(model, ids(1, 58), max_new_tokens=10).sequences, greedy)


@pytest.fixture
def compiled() -> Iterator[Callable[[PreTrainedModel], Any]]:
    """Compiles in one graph, without generating code: what is traced counts."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):  # of 8, to be quick
        yield lambda model: torch.compile(model, backend="eager", fullgraph=True)
    torch.compiler.reset()


def test_a_model_compiled_before_and_one_compiled_meanwhile(compiled: Callable[[PreTrainedModel], Any]) -> None:
    """With more sets of factors than torch.compile makes versions of a function."""
    model = tiny_model("llama", num_hidden_layers=1)
    tokens, mask = padded([ids(1, 40, 1), ids(1, 23, 2)])
    own = logits(model, tokens, attention_mask=mask)
    before = compiled(model)
    assert torch.equal(logits(before, tokens, attention_mask=mask), own)
    for number in (1, 2):
        with fs.apply(before, Factors.of([1.0 + number] * 8, number)):
            expected = logits(model, tokens, attention_mask=mask)
            assert not torch.equal(expected, own)
            assert torch.equal(logits(before, tokens, attention_mask=mask), expected)
    assert torch.equal(logits(before, tokens, attention_mask=mask), own)
    applied = fs.apply(model, FACTORS)
    meanwhile = compiled(model)
    assert torch.equal(logits(meanwhile, tokens, attention_mask=mask), logits(model, tokens, attention_mask=mask))
    applied.restore()
    assert torch.equal(logits(meanwhile, tokens, attention_mask=mask), own)


def test_generation_that_compiles(compiled: Callable[[PreTrainedModel], Any]) -> None:
    """As generate does by itself with a static cache on a GPU; each set of factors is compiled anew."""
    model = tiny_model("llama")
    settings = CompileConfig(backend="eager", fullgraph=True, mode=None)
    settings._compile_all_devices = True
    arguments = {"max_new_tokens": 50, "cache_implementation": "static"}
    own = generated(model, ids(1, 20), **arguments).sequences
    texts = []
    for factors in (FACTORS, Factors.of([3.0] * 8, 2, 1.1)):
        with fs.apply(model, factors):
            texts.append(generated(model, ids(1, 20), **arguments, compile_config=settings).sequences)
            assert torch.equal(texts[-1], generated(model, ids(1, 20), **arguments).sequences)
    texts.append(generated(model, ids(1, 20), **arguments, compile_config=settings).sequences)
    assert torch.equal(texts[-1], own)
    assert len({tuple(text[0].tolist()) for text in texts}) == 3


@pytest.mark.parametrize("model_type", FAMILIES)
def test_nothing_is_left_behind(model_type: str) -> None:
    model = tiny_model(model_type)
    pairs = read_geometry(model.config).pairs
    tokens = ids(1, 30)
    before, state, names = logits(model, tokens), leftovers(model), list(model.state_dict())
    applied = fs.apply(model, Factors.of([1.0 + 0.6 * i for i in range(pairs)], 4, 1.2))
    assert not torch.equal(logits(model, tokens), before)
    assert list(model.state_dict()) == names, "what is saved has no other weights"
    applied.restore()
    applied.restore()
    assert leftovers(model) == state
    assert torch.equal(logits(model, tokens), before)


def test_an_error_within_the_block_restores_the_model() -> None:
    model = tiny_model("llama")
    state = leftovers(model)
    with fs.apply(model, FACTORS) as same:
        assert same is model
    with pytest.raises(ValueError, match="input_ids"), fs.apply(model, FACTORS):
        model()
    assert leftovers(model) == state


def test_two_models_and_several_threads() -> None:
    models = [tiny_model("llama"), tiny_model("mistral")]
    candidates = [FACTORS, Factors.of([3.0] * 8, 2, 1.1)]
    tokens = ids(1, 70)
    own = [logits(model, tokens) for model in models]
    applied = [fs.apply(model, factors) for model, factors in zip(models, candidates, strict=True)]
    expected = [logits(model, tokens) for model in models]
    different: list[int] = []

    def compute(number: int) -> None:
        for _ in range(5):
            if not torch.equal(logits(models[number % 2], tokens), expected[number % 2]):
                different.append(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different
    applied[0].restore()
    assert torch.equal(logits(models[0], tokens), own[0])
    assert torch.equal(logits(models[1], tokens), expected[1]), "the other keeps its factors"
    applied[1].restore()
    assert torch.equal(logits(models[1], tokens), own[1])


def test_a_copy_keeps_the_factors(tmp_path: Path) -> None:
    """And what is saved is the model itself, without them."""
    model = tiny_model("llama")
    tokens = ids(1, 70)
    own = logits(model, tokens)
    stored = io.BytesIO()
    with fs.apply(model, FACTORS):
        expected = logits(model, tokens)
        copied = copy.deepcopy(model)
        torch.save(model, stored)
        model.save_pretrained(tmp_path)
    stored.seek(0)
    assert torch.equal(logits(copied, tokens), expected)
    assert torch.equal(logits(torch.load(stored, weights_only=False), tokens), expected)
    assert torch.equal(logits(model, tokens), own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied, tokens), expected), "the copy is independent"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(saved, tokens), own)


def test_precision_and_device_may_change_meanwhile() -> None:
    """Frequencies stay in float32, whatever the weights are cast to; they follow the model to its device."""
    model, cast = tiny_model("llama"), tiny_model("llama").to(torch.bfloat16)
    tokens, factors = ids(1, 70), Factors.of(FACTORS.rescale_factors)
    with fs.apply(cast, factors):
        expected = logits(cast, tokens)
    with fs.apply(model, factors):
        model.to(torch.bfloat16)
        assert torch.equal(logits(model, tokens), expected)
    rotary = model.model.rotary_emb
    with fs.apply(model, FACTORS):
        model.to("meta")
        assert rotary(torch.zeros(1, 1, 1, device="meta"), torch.zeros(1, 1, device="meta"))[0].device.type == "meta"
        assert rotary.forward._rescaled.inv_freq.device.type == "meta"


def test_gradient_checkpointing() -> None:
    """Layers that are computed again in the backward pass see the same rotations."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("llama").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        with fs.apply(model, FACTORS):
            tokens = ids(1, 70)
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_a_model_without_a_head() -> None:
    model = tiny_model("llama")
    base = AutoModel.from_config(model.config).eval()
    base.load_state_dict(model.model.state_dict())
    tokens = ids(1, 70)
    with fs.apply(model, FACTORS), torch.no_grad():
        expected = model.model(input_ids=tokens).last_hidden_state
    with fs.apply(base, FACTORS), torch.no_grad():
        assert torch.equal(base(input_ids=tokens).last_hidden_state, expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 with transformers 5.23
def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    tokens = ids(1, 70)
    with fs.apply(tiny_model("llama"), FACTORS) as plain:
        expected = logits(plain, tokens)
    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with fs.apply(adapted, FACTORS):
        torch.testing.assert_close(logits(adapted, tokens), expected)


def test_what_cannot_be_applied() -> None:
    model = tiny_model("llama")
    state = leftovers(model)
    with pytest.raises(FactorsError, match="3 rescale factors were given, but LlamaConfig has 8"):
        fs.apply(model, Factors.of([1.0] * 3))
    geometry = read_geometry(AutoConfig.for_model("llama", **SMALL, rope_theta=5e5))
    foreign = factors_file(FACTORS, FactorsModel.of("other", None, geometry), 256)
    with pytest.raises(FactorsError, match="rope_theta"):
        fs.apply(model, foreign)
    with pytest.raises(FactorsError, match="as load_factors gives"):
        fs.apply(model, "factors.json")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="loaded transformers model is needed, not str"):
        fs.apply("path/or/hub-id", FACTORS)  # type: ignore[arg-type]
    gpt2 = AutoConfig.for_model("gpt2", vocab_size=97, n_embd=64, n_layer=1, n_head=4)
    with pytest.raises(UnsupportedModelError, match="no RoPE"):
        fs.apply(AutoModelForCausalLM.from_config(gpt2), FACTORS)
    phimoe = tiny_model("phimoe", num_local_experts=4)
    with pytest.raises(UnsupportedModelError, match="ignores rescale factors"):
        fs.apply(phimoe, FACTORS)
    with fs.apply(model, FACTORS), pytest.raises(FactorsError, match="already"):
        fs.apply(model, FACTORS)
    assert leftovers(model) == state


def test_a_model_that_something_else_has_wrapped_meanwhile() -> None:
    model = tiny_model("llama")
    state = leftovers(model)
    applied = fs.apply(model, FACTORS)
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda *arguments, **named: forward(*arguments, **named)
    with pytest.raises(FactorsError, match="something has wrapped"):
        applied.restore()
    rotary.forward = forward
    applied.restore()
    assert leftovers(model) == state


def test_the_earlier_name() -> None:
    assert fs.apply_factors is fs.apply


def test_the_live_base_counts() -> None:
    """HunYuan's alpha is a larger base, which the configuration does not call rope_theta."""
    alpha = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}
    model = tiny_model("hunyuan_v1_dense", head_dim=16, rope_parameters=alpha)
    geometry = read_geometry(model.config)
    found = factors_file(Factors.of([2.0] * 8, 0, 1.1), FactorsModel.of("m", None, geometry), 128)
    with Injector(model, geometry) as injector, injector.using([found.factors]), torch.inference_mode():
        injected = model(input_ids=torch.arange(3, 90)[None]).logits
    with fs.apply(model, found), torch.inference_mode():
        torch.testing.assert_close(model(input_ids=torch.arange(3, 90)[None]).logits, injected)
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.copy_(5e5 ** (-torch.arange(0, 16, 2) / 16))
    with pytest.raises(FactorsError, match="they belong to another model"):
        fs.apply(model, found)
