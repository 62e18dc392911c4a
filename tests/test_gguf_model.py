"""A GGUF file is a model: what is loaded from it, and what is refused."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from api.cli import main
from bench.gguf_writer import Q4_1, Q8_0, write_model
from factor_search.errors import ExportError, ModelLoadError, SpecError, UnsupportedModelError
from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.files import gguf as gguf_headers
from factor_search.files.gguf import FLOAT32, UINT32, f32_tensor, number_entry, read_header, text_entry, write_gguf
from factor_search.interface import search_factors
from factor_search.methods import closed_form
from factor_search.model import loading
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import probe
from factor_search.model.loading import checkpoint_folder, load_config, load_model, load_tokenizer
from factor_search.plan.run import run_plan
from factor_search.plan.spec import parse_plan
from factor_search.spec import ModelSpec, looks_local, parse_spec
from tests.families import tiny_model
from tests.gguf_files import file_of
from tests.plans import plan_document, stages
from workers.policy import Policy

IDS = torch.arange(10, 50)[None]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257))


def spec(file: Path, **values: Any) -> ModelSpec:
    return ModelSpec(id=str(file), device="cpu", **values)


def rewritten(file: Path, *tensors: Any, without: tuple[str, ...] = (), **entries: Any) -> Path:
    """The file with other metadata (``__`` for a dot) and further tensors."""
    header = read_header(file)
    kept = {key: entry for key, entry in header.metadata.items() if key not in without}
    metadata = kept | {key.replace("__", "."): entry for key, entry in entries.items()}
    write_gguf(replace(header, metadata=metadata, tensors=(*header.tensors, *tensors)), file)
    return file


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_the_model_is_that_of_the_file(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, vocab_size=257)
    file = write_model(tmp_path / "m.gguf", model, architecture)
    loaded = load_model(spec(file))
    with torch.inference_mode():
        assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert loaded.identity == {"model": loaded.content, "dtype": "float32", "attention": "sdpa"}
    assert loaded.content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.geometry.architecture == type(model).__name__
    assert (loaded.geometry.original_length, loaded.geometry.configured_length) == (64, 64)
    assert checkpoint_folder(spec(file)) == file
    probe(loaded.model, loaded.geometry)


def test_it_can_be_saved_and_trained(tiny: Path, tmp_path: Path) -> None:
    loaded = load_model(spec(rewritten(tiny, llama__rope__scaling__factor=number_entry(4.0, 6))))
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.config.rope_parameters == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    with torch.inference_mode():
        assert torch.equal(saved(IDS).logits, loaded.model(IDS).logits)
    text = "It was 1984.\n\n  Naïve 漢字"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids == list(text.encode())
    loaded.model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(weight.grad is not None for weight in loaded.model.parameters())


def test_precision(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=257)
    file = write_model(tmp_path / "m.gguf", model, quantised=Q8_0)
    assert load_model(spec(file)).model.dtype == torch.bfloat16
    whole = load_model(spec(file, dtype="float32")).model
    assert whole.dtype == torch.float32
    off = (whole.get_input_embeddings().weight - model.get_input_embeddings().weight).abs().max()
    assert 0 < off < 5e-3


@pytest.mark.parametrize(("wanted", "first"), [(True, [256]), (False, [])])
def test_a_text_begins_with_bos_where_the_file_says_so(wanted: bool, first: list[int], tiny: Path) -> None:
    flag = number_entry(wanted, 7)
    tokenizer = load_tokenizer(spec(rewritten(tiny, tokenizer__ggml__add_bos_token=flag)))
    assert tokenizer("a").input_ids == [*first, 97]
    assert tokenizer("a", add_special_tokens=False).input_ids == [97]
    tokenizer = load_tokenizer(spec(rewritten(tiny, without=("tokenizer.ggml.add_bos_token",))))
    assert tokenizer("a").input_ids == [97]
    pre = text_entry("llama-bpe")  # with which llama.cpp begins every text with BOS, whether the file says so or not
    tokenizer = load_tokenizer(spec(rewritten(tiny, tokenizer__ggml__pre=pre)))
    assert tokenizer("a").input_ids == [256, 97]


def test_a_gguf_file_is_never_on_the_hub() -> None:
    assert looks_local("m.gguf")
    assert looks_local("owner/m.GGUF")
    assert not looks_local("owner/name-GGUF")


def test_a_scaling_gives_the_original_length(tiny: Path) -> None:
    factors = f32_tensor("rope_freqs.weight", [1.0 + i for i in range(8)])
    geometry = read_geometry(load_config(spec(rewritten(tiny, factors))))
    assert (geometry.original_length, geometry.configured_length, geometry.base_rope_type) == (64, 64, "longrope")
    rewritten(tiny, llama__rope__scaling__original_context_length=number_entry(16, UINT32))
    assert read_geometry(load_config(spec(tiny))).original_length == 16
    configured = read_geometry(load_config(spec(tiny))).configured_factors(64)
    assert configured is not None
    assert configured.rescale_factors == pytest.approx([1.0 + i for i in range(8)], rel=1e-6)
    assert (configured.initial_tokens, configured.attention_factor) == (0, 1.0)
    assert read_geometry(load_config(spec(tiny)), 32).original_length == 32


@pytest.mark.parametrize(
    ("factor", "stated", "lengths"),
    [
        (4.0, None, (16, 64)),  # the context length includes the factor, as in most models
        (4.0, 32, (32, 64)),
        (4.0, 64, (64, 256)),
        (3.0, 21, (21, 64)),  # 64 / 3 is not whole, so nothing could be guessed
    ],
)
def test_the_original_length_of_a_linear_scaling(
    factor: float, stated: int | None, lengths: tuple[int, int], tiny: Path, tmp_path: Path
) -> None:
    entries = {"llama__rope__scaling__factor": number_entry(factor, FLOAT32)}
    if stated is not None:
        entries["llama__rope__scaling__original_context_length"] = number_entry(stated, UINT32)
    config = load_config(spec(rewritten(tiny, **entries)))
    config.save_pretrained(tmp_path)
    for geometry in (read_geometry(config), read_geometry(AutoConfig.from_pretrained(tmp_path))):
        assert (geometry.original_length, geometry.configured_length, geometry.base_rope_type) == (*lengths, "linear")
        # transformers fills in the stated length, so one that is equal to the context length looks like a guess
        assert bool(geometry.notes) == (stated in (None, 64)), "only a guess is mentioned"


def test_sizes_that_transformers_drops(tmp_path: Path) -> None:
    model = tiny_model("qwen2", vocab_size=257)
    file = write_model(
        tmp_path / "q.gguf", model, "qwen2", extra={"attention.key_length": 16, "attention.value_length": 16}
    )
    assert read_geometry(load_config(spec(file))).rotary_dim == 16
    partial = write_model(tmp_path / "p.gguf", tiny_model("phi3", vocab_size=257), "phi3")
    rewritten(partial, phi3__rope__dimension_count=number_entry(12, UINT32))
    loaded = load_model(spec(partial))
    assert loaded.geometry.rotary_dim == 12
    probe(loaded.model, loaded.geometry)
    wide = write_model(
        tmp_path / "w.gguf", tiny_model("llama", vocab_size=320)
    )  # more rows than the tokenizer has words
    rewritten(wide, llama__vocab_size=number_entry(257, UINT32))
    assert load_model(spec(wide)).model.config.vocab_size == 320


ROTATED: dict[str, tuple[dict[str, int], str, int]] = {
    "qwen3": ({"attention.key_length": 32, "rope.dimension_count": 32}, "Qwen3ForCausalLM", 32),
    "qwen3moe": ({"attention.key_length": 32, "rope.dimension_count": 32}, "Qwen3MoeForCausalLM", 32),
    "qwen2moe": ({}, "Qwen2MoeForCausalLM", 16),
    "gemma2": ({"attention.key_length": 16}, "Gemma2ForCausalLM", 16),
    "gemma3": ({"attention.key_length": 16, "block_count": 6}, "Gemma3ForCausalLM", 16),
    "stablelm": ({"rope.dimension_count": 4}, "StableLmForCausalLM", 4),
    "nemotron": ({"rope.dimension_count": 8}, "NemotronForCausalLM", 8),
    "starcoder2": ({}, "Starcoder2ForCausalLM", 16),
    "falcon": ({}, "FalconForCausalLM", 16),
    "gpt-oss": ({"attention.key_length": 16}, "GptOssForCausalLM", 16),
    "minimax-m2": ({"attention.key_length": 16}, "MiniMaxM2ForCausalLM", 16),
}


@pytest.mark.parametrize(("architecture", "sizes", "class_name", "rotary_dim"), [(k, *v) for k, v in ROTATED.items()])
def test_the_rotation_of_other_architectures(
    architecture: str, sizes: dict[str, int], class_name: str, rotary_dim: int, tmp_path: Path
) -> None:
    file = file_of(tmp_path, architecture)
    entries = {f"{architecture}.{key}": number_entry(value, UINT32) for key, value in sizes.items()}
    rewritten(file, **entries | {f"{architecture}.rope.freq_base": number_entry(5e5, 6)})
    geometry = read_geometry(load_config(spec(file)))
    assert (geometry.architecture, geometry.rotary_dim, geometry.rope_theta) == (class_name, rotary_dim, 5e5)
    assert (geometry.original_length, geometry.base_rope_type) == (64, "default")
    scaling = f"{architecture}.rope.scaling"
    yarn = {f"{scaling}.type": text_entry("yarn"), f"{scaling}.factor": number_entry(4.0, 6)}
    rewritten(file, **yarn | {f"{scaling}.original_context_length": number_entry(32, UINT32)})
    geometry = read_geometry(load_config(spec(file)))
    assert (geometry.original_length, geometry.base_rope_type) == (32, "yarn")
    assert geometry.layer_type == ("full_attention" if architecture == "gemma3" else None)


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "mamba", "t5"])
def test_architectures_without_rope(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="has no RoPE parameters"):
        read_geometry(load_config(spec(file_of(tmp_path, architecture))))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an architecture": (
        {"general__architecture": text_entry("granite")},
        r"architecture granite, which transformers does not read from GGUF files: it reads .*llama, .*qwen2moe",
    ),
    "a scaling": (
        {"llama__rope__scaling__type": text_entry("su")},
        "scaling of type 'su', which llama.cpp does not know",
    ),
    "a factor": ({"llama__rope__scaling__factor": number_entry(-2.0, 6)}, "impossible RoPE"),
    "a dimension": ({"llama__rope__dimension_count": number_entry(17, UINT32)}, "impossible RoPE"),
    "the number of factors": ({"+": f32_tensor("rope_freqs.weight", [1.0] * 4)}, "has 4 numbers for 8 rotary pairs"),
    "the sign of factors": ({"+": f32_tensor("rope_freqs.weight", [-1.0] * 8)}, "impossible RoPE"),
    "half a pair": (
        {"+": f32_tensor("rope_factors_long.weight", [1.0] * 8), "llama__rope__scaling__type": text_entry("longrope")},
        "only one of rope_factors_long.weight and rope_factors_short.weight",
    ),
}


@pytest.mark.parametrize(("entries", "reason"), WRONG.values(), ids=WRONG)
def test_a_file_that_says_something_wrong(entries: dict[str, Any], reason: str, tiny: Path) -> None:
    tensors = [entries[key] for key in entries if key == "+"]
    rewritten(tiny, *tensors, **{key: value for key, value in entries.items() if key != "+"})
    with pytest.raises((ModelLoadError, UnsupportedModelError), match=reason) as error:
        load_config(spec(tiny))
    assert "\n" not in str(error.value)


def test_what_would_give_other_losses_than_llama_cpp_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257))
    with pytest.raises(ModelLoadError, match="pre-tokenizer 'deepseek-coder', which is not known here"):
        load_tokenizer(spec(rewritten(file, tokenizer__ggml__pre=text_entry("deepseek-coder"))))
    with pytest.raises(ModelLoadError, match="has no vocabulary"):
        load_tokenizer(spec(rewritten(file, without=("tokenizer.ggml.tokens",))))
    file.unlink()
    write_model(file, tiny_model("llama", vocab_size=257))
    with pytest.raises(
        UnsupportedModelError, match=r"holds \d+ weights, but LlamaForCausalLM of transformers uses \d+"
    ):
        load_model(spec(rewritten(file, f32_tensor("blk.0.attn_q_norm.weight", [1.0] * 16))))
    file = write_model(
        tmp_path / "q.gguf",
        tiny_model("qwen2", vocab_size=257),
        "qwen2",
        tensors={"rope_freqs.weight": np.ones(8, "float32")},
    )
    with pytest.raises(ModelLoadError, match=r"llama\.cpp refuses such a file of architecture qwen2"):
        load_config(spec(file))
    header = read_header(write_model(tmp_path / "t.gguf", tiny_model("llama", vocab_size=257)))
    write_gguf(replace(header, tensors=header.tensors[:4] + header.tensors[5:]), tmp_path / "t.gguf")
    with pytest.raises(ModelLoadError, match="lacks 1 weights that the model needs"):
        load_model(spec(tmp_path / "t.gguf"))


def test_the_live_frequencies_are_compared(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(spec(tiny))
    config.rope_parameters = config.rope_parameters | {"rope_theta": 5e5}
    monkeypatch.setattr(loading, "load_config", lambda _: config)
    with pytest.raises(UnsupportedModelError, match="does not compute with the frequencies of"):
        load_model(spec(tiny))


def test_a_bias_of_q_k_and_v_in_a_llama(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=257, attention_bias=True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.fill_(0.0 if ".o_proj." in name else 0.4)
    header = read_header(write_model(tmp_path / "m.gguf", model))
    without = tuple(tensor for tensor in header.tensors if not tensor.name.endswith("attn_output.bias"))
    assert len(without) == len(header.tensors) - 2
    write_gguf(replace(header, tensors=without), tmp_path / "m.gguf")
    with torch.inference_mode():
        assert torch.equal(load_model(spec(tmp_path / "m.gguf")).model(IDS).logits, model(IDS).logits)


def test_policy(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "m.gguf").touch()
    (root / "link.gguf").symlink_to(outside / "m.gguf")
    policy = Policy((root,), allow_hub=False, allow_remote_code=False)

    def check(model: Path) -> None:
        policy.check(parse_spec({"model": str(model), "data": [str(root / "*.txt")], "target_length": 512}))

    check(root / "m.gguf")
    for model in (outside / "m.gguf", root / "link.gguf", root / ".." / "outside" / "m.gguf"):
        with pytest.raises(SpecError, match="is not in a folder that jobs may use"):
            check(model)


def test_a_search_on_a_file(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257), quantised=Q4_1))
    documents = {"files": [f"{texts}/*.txt"], "search_documents": 2, "validation_documents": 1, "held_out_documents": 1}
    found = search_factors(model, data=documents, target_length=128, budget={"candidates": 4}, out=tmp_path / "out")
    assert found.factors.model.id == model
    assert main(["inspect", "--model", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rotary_dim"] == 16
    assert main(["methods", "--model", model, "--target-length", "128"]) == 0
    factors = str(tmp_path / "out" / "factors.json")
    data = ["--data", f"{texts}/*.txt", "--length", "128"]
    assert main(["evaluate", "--model", model, *data, "--factors", factors]) == 0
    capsys.readouterr()
    assert main(["inspect", "--model", str(tmp_path / "absent.gguf")]) == 1
    assert "there is no GGUF file" in capsys.readouterr().err


def test_a_plan_on_a_file(texts: Path, tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257), quantised=Q4_1)
    plan = plan_document(file, texts)
    search, finetune, *_, last = stages(**{"export-1": {"profile": "static"}})
    search |= {"space": {"initial_tokens": [0]}, "budget": 4}
    with pytest.raises(ExportError, match=r"export-1: .*m.gguf is a GGUF file, which this format does not take"):
        run_plan(parse_plan(plan | {"stages": [search, last]}), tmp_path / "out")
    patched = run_plan(parse_plan(plan | {"stages": [search, last | {"format": "gguf"}]}), tmp_path / "patched")
    described = patched.outcomes[-1].report
    assert described["files"] == ["m-128.gguf"]
    assert described["command"].endswith("/model/m-128.gguf -c 128")
    assert load_config(spec(tmp_path / "patched" / "export-1" / "model" / "m-128.gguf")).rope_parameters
    result = run_plan(parse_plan(plan | {"stages": [search, finetune, last]}), tmp_path / "out")
    tuned = result.outcomes[-1].model
    assert tuned is not None
    assert AutoModelForCausalLM.from_pretrained(tuned.id).config.rope_parameters["rope_type"] == "longrope"


def test_a_folder_cannot_be_exported_from_a_file(tiny: Path, tmp_path: Path) -> None:
    geometry = load_model(spec(tiny)).geometry
    found = factors_file(closed_form("pi", geometry, 128), FactorsModel.of("m", None, geometry), 128)
    with pytest.raises(ExportError, match="is a GGUF file, which this format does not take"):
        export("huggingface", Source(found, spec(tiny)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for format in ("vllm", "mlx"):
        renamed = tmp_path / "M.GGUF"
        renamed.write_bytes(tiny.read_bytes())
        with pytest.raises(ExportError, match="is a GGUF file"):
            export(format, Source(found, spec(renamed)), tmp_path / "out")


def test_without_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gguf", "gguf.constants"):
        monkeypatch.setitem(sys.modules, name, None)
    gguf_headers._read.cache_clear()
    with pytest.raises(ModelLoadError, match=r"need the package gguf: pip install 'factor-search\[gguf\]'"):
        load_config(spec(tiny))
