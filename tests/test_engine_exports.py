"""Exports to engines that are not run here: their formulas, re-implemented from their source, give the factors."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factor_search.errors import ExportError, FactorsError, OutputError
from factor_search.export.contract import Source
from factor_search.export.lengths import Lengths, lengths_for
from factor_search.export.registry import ENGINES, export
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec
from tests.conftest import save_checkpoint
from tests.families import HEAD, tiny_model

TARGET, ORIGINAL = 256, 64
WITH_CONFIGURATION = ("vllm", "sglang", "mlx", "exllamav3", "tensorrt-llm")


def found_for(model: PreTrainedModel, initial_tokens: int = 0, attention_factor: float = 1.17) -> FactorsFile:
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], initial_tokens, attention_factor)
    return factors_file(factors, FactorsModel.of("m", None, geometry), max(TARGET, 4 * geometry.original_length))


def source_of(model: PreTrainedModel, folder: Path, **values: Any) -> Source:
    save_checkpoint(model, folder)
    return Source(found_for(model, **values), ModelSpec(id=str(folder)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(tiny_model("llama"), tmp_path_factory.mktemp("models") / "llama")


def read(format: str, source: Source, folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(export(format, source, folder / "exported.json").files[0].read_text())
    return content


def expected(file: FactorsFile, positions: Tensor) -> Tensor:
    """Cos and sin of transformers' longrope, (positions, 2 pairs)."""
    exponents = torch.arange(0, file.model.rotary_dim, 2).float() / file.model.rotary_dim
    inverse = 1.0 / (torch.tensor(file.rescale_factors) * file.model.rope_theta**exponents)
    angles = positions.float()[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * file.attention_factor


def phi3_tables(rope: dict[str, Any], maximum: int, rotary_dim: int) -> tuple[Tensor, int]:
    """The short and the long table one after the other, and the original length.

    ``Phi3LongRoPEScaledRotaryEmbedding.__init__`` of vLLM 0.32.0
    (vllm/model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py) and of SGLang 0.5.23
    (sglang/srt/layers/rotary_embedding/rope_variant.py), which are the same.
    """
    original = rope["original_max_position_embeddings"]
    scale = maximum / original
    formula = 1.0 if scale <= 1.0 else math.sqrt(1 + math.log(scale) / math.log(original))

    def table(length: int, factors: list[float], mscale: float) -> Tensor:
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float) / rotary_dim
        inverse = 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope["rope_theta"] ** exponents)
        angles = torch.einsum("i,j -> ij", torch.arange(length, dtype=torch.float), inverse)
        return torch.cat((angles.cos() * mscale, angles.sin() * mscale), dim=-1)

    short = table(original, rope["short_factor"], rope.get("short_mscale") or formula)
    return torch.cat([short, table(maximum, rope["long_factor"], rope.get("long_mscale") or formula)]), original


def in_vllm(content: dict[str, Any], positions: Tensor, served: int, rotary_dim: int) -> Tensor:
    """``forward`` of vLLM: the long table if the served window exceeds the original length."""
    table, original = phi3_tables(content["rope_parameters"], content["max_position_embeddings"], rotary_dim)
    return table[positions + original if served > original else positions]


def in_sglang(content: dict[str, Any], positions: Tensor, rotary_dim: int) -> Tensor:
    """``forward`` of SGLang: the long table if any position exceeds the original length."""
    rope = content["rope_parameters"]
    if "original_max_position_embeddings" in content:  # models/llama.py, and not models/qwen2.py
        rope = rope | {"original_max_position_embeddings": content["original_max_position_embeddings"]}
    table, original = phi3_tables(rope, content["max_position_embeddings"], rotary_dim)
    return table[positions + (original if bool((positions > original).any()) else 0)]


def in_exllamav3(content: dict[str, Any], positions: Tensor, rotary_dim: int) -> Tensor:
    """``_rope_params_longrope`` and ``compute_sincos`` of ExLlamaV3 1.6.5 (exllamav3/util/rope.py)."""
    scaling = content["rope_scaling"]
    maximum = content["max_position_embeddings"]
    original = scaling.get("original_max_position_embeddings", content.get("original_max_position_embeddings"))
    factors = torch.tensor(scaling["long_factor" if maximum > original else "short_factor"], dtype=torch.float32)
    attention = math.sqrt(1 + math.log(maximum / original) / math.log(original)) if maximum > original else 1.0
    exponents = torch.arange(0, rotary_dim, 2).float() / rotary_dim
    angles = torch.einsum("i,j->ij", positions.float(), 1.0 / (factors * content["rope_theta"] ** exponents))
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention


def in_tensorrt_llm(content: dict[str, Any], positions: Tensor, rotary_dim: int) -> Tensor:
    """``RopeParams.from_config`` (tensorrt_llm/_torch/attention_backend/interface.py, main of November 2026) and
    ``RopeEmbeddingUtils.create_sinusoidal_positions_long_rope`` (tensorrt_llm/functional.py), in the form that takes
    the short list below the original length and the long one above."""
    maximum = content["max_position_embeddings"]
    scaling = content["rope_scaling"]
    original = content.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings", 1024)
    assert scaling.get("type") == "longrope"
    plain = 1.0 / content["rope_theta"] ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    short, long = (plain / torch.tensor(scaling[name]) for name in ("short_factor", "long_factor"))
    angles = positions.float()[:, None] * torch.where((positions < original)[:, None], short, long)
    attention = 1.0 if maximum <= original else math.sqrt(1 + math.log(maximum / original) / math.log(original))
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention


def test_vllm_computes_the_factors_for_windows_of_any_length(llama: Source, tmp_path: Path) -> None:
    content, every = read("vllm", llama, tmp_path), torch.arange(TARGET)
    for served in (TARGET, ORIGINAL):  # a window up to the original length takes the short list
        got = in_vllm(content, every[:served], served, 16)
        torch.testing.assert_close(got, expected(llama.file, every[:served]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [[0], [ORIGINAL], [ORIGINAL - 1, ORIGINAL], range(TARGET), [5, TARGET - 1]])
def test_sglang_computes_the_factors_for_every_batch(batch: list[int], llama: Source, tmp_path: Path) -> None:
    positions = torch.tensor(list(batch))
    content = read("sglang", llama, tmp_path)
    without_top_level = {key: value for key, value in content.items() if not key.startswith("original")}
    for read_by_a_model in (content, without_top_level):
        got = in_sglang(read_by_a_model, positions, 16)
        torch.testing.assert_close(got, expected(llama.file, positions), rtol=0, atol=1e-5)


def test_the_original_length_itself_would_be_wrong_in_sglang(llama: Source, tmp_path: Path) -> None:
    content = read("sglang", llama, tmp_path) | {"original_max_position_embeddings": ORIGINAL}
    position = torch.tensor([ORIGINAL])  # as decoded alone: row 0 of the long table
    first = expected(llama.file, torch.tensor([0]))
    torch.testing.assert_close(in_sglang(content, position, 16), first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention_factor", [1.0, 1.004, 1.1547, 1.17, 1.5])
def test_exllamav3_computes_the_factors(attention_factor: float, tmp_path: Path) -> None:
    source = source_of(tiny_model("qwen3"), tmp_path / "model", attention_factor=attention_factor)
    positions = torch.arange(TARGET)
    got = in_exllamav3(read("exllamav3", source, tmp_path), positions, 32)
    torch.testing.assert_close(got, expected(source.file, positions), rtol=1e-5, atol=2e-5)


def test_tensorrt_llm_computes_the_factors_with_the_formula_only(llama: Source, tmp_path: Path) -> None:
    formula = math.sqrt(1 + math.log(4) / math.log(64))
    with pytest.raises(ExportError, match=r"1.17, and TensorRT-LLM .*; the nearest is the formula's, 1.1547: "):
        export("tensorrt-llm", llama, tmp_path / "exported.json")
    export("tensorrt-llm", llama, tmp_path / "exported.json", nearest=True)
    content = json.loads((tmp_path / "exported.json").read_text())
    positions = torch.arange(TARGET)
    file = llama.file.model_copy(update={"attention_factor": formula})
    got = in_tensorrt_llm(content, positions, 16)
    torch.testing.assert_close(got, expected(file, positions), rtol=0, atol=1e-5)
    assert (content["max_position_embeddings"], content["original_max_position_embeddings"]) == (TARGET, ORIGINAL)


@given(
    attention_factor=st.floats(1.0, 1.6),
    original=st.integers(512, 32_768),
    scale=st.floats(1.1, 64.0),
)
@settings(max_examples=200, deadline=None)
def test_lengths_express_attention_factors(attention_factor: float, original: int, scale: float) -> None:
    target = round(original * scale)
    lengths = lengths_for(attention_factor, target, original)
    assert lengths.attention_factor == pytest.approx(attention_factor, rel=2e-6 if target >= 16_384 else 1e-4)
    assert target <= lengths.maximum < 2 * target


def test_a_large_attention_factor_needs_a_large_window() -> None:
    lengths = lengths_for(2.5, 256, 64)
    assert lengths == (round(64 ** (2.5**2)), 64)
    assert lengths.attention_factor == pytest.approx(2.5, rel=1e-6)
    for absurd in (1e3, 1e300):
        assert lengths_for(absurd, 256, 64).maximum <= 2**53
    assert Lengths(256, 1).attention_factor == 1.0


def test_lengths_of_the_formula_are_the_true_ones() -> None:
    true = Lengths(131_072, 8_192)
    assert lengths_for(true.attention_factor, *true) == true
    assert lengths_for(1.0, *true) == (131_072, 131_072)
    assert Lengths(100, 100).attention_factor == Lengths(10, 100).attention_factor == 1.0
    notes = Lengths(200, 100).notes(1.2, 150)
    assert "becomes 1.07262 instead of 1.2" in notes[0]
    assert "max_position_embeddings is 200 instead of 150" in notes[1]
    assert true.notes(true.attention_factor, 131_072) == []


def test_the_command_of_vllm(llama: Source, tmp_path: Path) -> None:
    exported = export("vllm", llama, tmp_path / "new" / "folder")
    assert list(exported.files) == [tmp_path / "new" / "folder" / "vllm.json"]
    words = shlex.split(exported.command or "")
    assert words[:4] == ["vllm", "serve", llama.model.id, "--hf-overrides"]
    assert words[5:] == ["--max-model-len", str(TARGET)]
    overrides = json.loads(words[4])
    assert overrides == json.loads(exported.files[0].read_text())
    assert set(overrides) == {"rope_parameters", "max_position_embeddings"}  # no original length at the top level
    assert overrides["rope_parameters"]["long_mscale"] == overrides["rope_parameters"]["short_mscale"] == 1.17
    spec = ModelSpec(id="owner/name", revision="abc", trust_remote_code=True)
    pinned = Source(llama.file, spec)
    pinned.__dict__["config"] = llama.config  # as if it had been read from the hub
    for format in ("vllm", "sglang"):
        command = shlex.split(export(format, pinned, tmp_path / "x.json").command or "")
        assert command[-3:] == ["--revision", "abc", "--trust-remote-code"]


def test_the_command_of_sglang(llama: Source, tmp_path: Path) -> None:
    exported = export("sglang", llama, tmp_path / "sglang.json")
    words = shlex.split(exported.command or "")
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", llama.model.id]
    assert words[5] == "--json-model-override-args"
    assert json.loads(words[6]) == json.loads((tmp_path / "sglang.json").read_text())
    assert words[7:] == ["--context-length", str(TARGET)]


def test_overrides_of_multi_modal_models_are_in_the_text_part(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4} | HEAD
    config = AutoConfig.for_model("gemma3", text_config=text | {"max_position_embeddings": ORIGINAL})
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path / "model")
    geometry = read_geometry(config)
    lambdas = [1.0 + i for i in range(geometry.pairs)]
    file = factors_file(Factors.of(lambdas, 0, 1.1), FactorsModel.of("m", None, geometry), TARGET)
    content = read("vllm", Source(file, ModelSpec(id=str(tmp_path / "model"))), tmp_path)
    assert set(content) == {"text_config"}
    assert content["text_config"]["rope_parameters"]["full_attention"]["long_factor"] == lambdas
    assert content["text_config"]["max_position_embeddings"] == TARGET


@pytest.mark.parametrize(
    ("format", "model_type", "reason"),
    [
        ("vllm", "glm4", "rotates neighbouring dimensions"),
        ("vllm", "cohere", "rotates neighbouring dimensions"),
        ("vllm", "deepseek_v3", "rotates neighbouring dimensions"),
        ("vllm", "ernie4_5", "rotates neighbouring dimensions"),
        ("vllm", "gpt_oss", "composes the RoPE parameters"),
        ("sglang", "mixtral", "SGLang 0.5.23 is not known to compute with factors for models of type mixtral"),
        ("sglang", "deepseek_v3", "models of type deepseek_v3"),
        ("exllamav3", "cohere", "ExLlamaV3 1.6 is not known to compute with factors for models of type cohere"),
        ("tensorrt-llm", "qwen3", "TensorRT-LLM 1.2 is not known to compute with factors for models of type qwen3"),
    ],
)
def test_models_that_an_engine_computes_otherwise(format: str, model_type: str, reason: str, tmp_path: Path) -> None:
    source = source_of(tiny_model(model_type), tmp_path / "model")
    with pytest.raises(ExportError, match=reason):
        export(format, source, tmp_path / "out", nearest=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", WITH_CONFIGURATION)
def test_what_no_configuration_can_express(format: str, llama: Source, tmp_path: Path) -> None:
    engine = ENGINES[format]
    kept = Source(llama.file.model_copy(update={"initial_tokens": 16}), llama.model)
    short = factors_file(Factors.of([1.1] * 8, 0, 1.17), llama.file.model, ORIGINAL)
    switching = Source(llama.file, llama.model, short)
    for source, nearest in ((kept, "without initial tokens"), (switching, "the long factors for all inputs")):
        with pytest.raises(ExportError, match=nearest):
            export(format, source, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()
        export(format, source, tmp_path / "out.json", nearest=True)
        written = (tmp_path / "out.json").read_text()
        (tmp_path / "out.json").unlink()
        plain = export(format, llama, tmp_path / "plain.json", nearest=True)
        assert written == plain.files[0].read_text()
    gguf = Source(llama.file, ModelSpec(id="model.gguf"))
    with pytest.raises(ExportError, match="--format gguf"):
        engine.check(gguf)
    theta = llama.file.model.model_copy(update={"rope_theta": 5e5})
    with pytest.raises(FactorsError, match="rope_theta"):
        engine.check(Source(llama.file.model_copy(update={"model": theta}), llama.model))


def test_positions_in_images_are_refused(tmp_path: Path) -> None:
    mrope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    source = source_of(tiny_model("llama", rope_parameters=mrope), tmp_path / "model")
    for format in ("vllm", "sglang"):
        with pytest.raises(ExportError, match=r"rotates with positions in images \(mrope\)"):
            export(format, source, tmp_path / "out.json")


@pytest.mark.parametrize("format", ["mlx", "exllamav3", "tensorrt-llm"])
def test_a_model_folder_is_one_that_transformers_loads_too(format: str, llama: Source, tmp_path: Path) -> None:
    exported = export(format, llama, tmp_path / "out", nearest=True)
    assert {file.name for file in exported.files} == {file.name for file in Path(llama.model.id).iterdir()}
    assert all(file.exists() for file in exported.files)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    plain = AutoModelForCausalLM.from_pretrained(llama.model.id).eval()
    ids = torch.randint(3, 97, (1, 100), generator=torch.Generator().manual_seed(4))
    factor = model.config.rope_parameters["attention_factor"]
    injector = Injector(plain, read_geometry(plain.config))
    with torch.inference_mode(), injector, injector.using([Factors.of(llama.file.rescale_factors, 0, factor)]):
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=1e-4)


def test_a_folder_is_written_whole_or_not_at_all(
    llama: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(item: Path, destination: Path, **options: bool) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("factor_search.export.model_folder.link_or_copy", fails)
        with pytest.raises(OutputError, match="No space left on device"):
            export("mlx", llama, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").touch()
    for occupied in (tmp_path / "occupied", tmp_path / "occupied" / "file"):
        with pytest.raises(OutputError, match="is not empty"):
            export("mlx", llama, occupied)
    with pytest.raises(OutputError, match="cannot write"):
        export("vllm", llama, tmp_path / "occupied" / "file" / "below")
    (tmp_path / "empty").mkdir()
    export("mlx", llama, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_engines_and_scorers_load_no_library() -> None:
    modules = "factor_search.export.registry, factor_search.export.verification.mlx, " + (
        "factor_search.export.verification.onnx, factor_search.export.verification.vllm"
    )
    heavy = {"torch", "transformers", "onnx", "onnxruntime_genai", "mlx", "mlx_lm", "vllm"}
    code = f"import sys, {modules}; print(*{heavy!r} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
