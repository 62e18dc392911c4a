import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factor_search.errors import ExportError, FactorsError, OutputError
from factor_search.export.contract import Source
from factor_search.export.huggingface import export_huggingface, huggingface_config
from factor_search.export.registry import engine_named
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec
from tests.families import FAMILIES, MORE_FAMILIES, tiny_model

TARGET = 256
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
SOFTMAX = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 1.0}
STEPS = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}
BASES = {"llama3": LLAMA3, "yarn": YARN, "longrope": LONGROPE, "linear": {"rope_type": "linear", "factor": 2.0}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (*FAMILIES, *MORE_FAMILIES) if name not in ("gemma4_text",)},
    **{f"llama with {name}": ("llama", {"rope_scaling": base}) for name, base in BASES.items()},
    "phi3 with a top-level original length": ("phi3", {"original_max_position_embeddings": 32}),
    "phi3 with a share of rotary dimensions": ("phi3", {"partial_rotary_factor": 0.5}),
    "deepseek_v3 with a softmax correction": ("deepseek_v3", {"rope_scaling": SOFTMAX | {"mscale_all_dim": 1.0}}),
    "deepseek_v3 with a correction not in force": ("deepseek_v3", {"rope_scaling": {"mscale_all_dim": 1.0}}),
    "minicpm3 with a softmax correction": ("minicpm3", {"rope_scaling": SOFTMAX | {"mscale_all_dim": 0.7}}),
    "ministral3 with scaled queries": ("ministral3", {"head_dim": 16, "rope_parameters": STEPS | {"rope_theta": 1e6}}),
    "gpt_neox with its own share": ("gpt_neox", {"rotary_pct": 0.5}),
}
LENGTHS = (TARGET, 20)
"""Beyond and within the original length: the profile is static."""


def found_for(model: PreTrainedModel, **values: Any) -> FactorsFile:
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], values.pop("initial_tokens", 0), 1.17)
    target = max(TARGET, 4 * geometry.original_length)
    return factors_file(factors, FactorsModel.of("m", None, geometry), target)


PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        logits = []
        for length in json.loads(sys.argv[2]):
            tokens = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(4))
            with torch.inference_mode():
                logits.append(model(input_ids=tokens).logits[0])
        torch.save(logits, f"{folder}/logits.pt")
    except Exception as error:
        print(f"{folder}: {type(error).__name__}: {error}", file=sys.stderr)
"""


@dataclass
class Written:
    """What was expected of an exported model, and where it is."""

    folder: Path
    found: list[torch.Tensor]
    plain: list[torch.Tensor]

    @property
    def loaded(self) -> list[torch.Tensor]:
        logits: list[torch.Tensor] = torch.load(self.folder / "logits.pt")
        return logits


def write_export(name: str, folder: Path) -> Written:
    model = tiny_model(*CASES[name][:1], **CASES[name][1])
    file = found_for(model)
    source, out = folder / "source" / name, folder / "out" / name
    model.save_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source).eval()  # some set the row of the padding token to 0
    export_huggingface(file, AutoConfig.from_pretrained(source), lambda: source, out)
    found, plain = [], []
    geometry = read_geometry(model.config)
    for length in LENGTHS:
        tokens = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(4))
        with torch.inference_mode():
            plain.append(model(input_ids=tokens).logits[0])
            with Injector(model, geometry) as injector, injector.using([file.factors]):
                found.append(model(input_ids=tokens).logits[0])
    return Written(out, found, plain)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every case exported, and its logits by plain transformers in a fresh process."""
    folder = tmp_path_factory.mktemp("exports")
    cases = {name: write_export(name, folder) for name in CASES}
    folders = [str(case.folder) for case in cases.values()]
    command = [sys.executable, "-c", PLAIN, json.dumps(folders), json.dumps(LENGTHS)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return cases


def test_there_are_enough_architectures() -> None:
    assert len({model_type for model_type, _ in CASES.values()}) >= 70


@pytest.mark.parametrize("name", CASES)
def test_plain_transformers_computes_the_same(name: str, written: dict[str, Written]) -> None:
    case = written[name]
    assert (case.folder / "logits.pt").exists(), "it cannot be loaded"
    for loaded, found, plain in zip(case.loaded, case.found, case.plain, strict=True):
        assert (loaded - found).abs().max() <= 1e-5 * found.abs().max()
        assert (plain - found).abs().max() > 1e-3 * found.abs().max()


def test_both_spellings_are_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    content = huggingface_config(found_for(model), model.config)
    for name in ("rope_parameters", "rope_scaling"):
        rope = content[name]
        assert rope["type"] == rope["rope_type"] == "longrope"
        assert rope["short_factor"] == rope["long_factor"]
        assert rope["short_mscale"] == rope["long_mscale"] == rope["attention_factor"] == 1.17
        assert rope["original_max_position_embeddings"] == 64
    assert (content["max_position_embeddings"], content["rope_theta"], content["head_dim"]) == (256, 10_000.0, 16)
    json.dumps(content)


def test_weights_are_linked_and_nothing_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    config = AutoConfig.from_pretrained(checkpoint)
    file = found_for(tiny_model("llama", vocab_size=257))
    export_huggingface(file, config, lambda: checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 256
    for occupied in (checkpoint, tmp_path / "out"):
        with pytest.raises(OutputError, match="is not empty"):
            export_huggingface(file, config, lambda: checkpoint, occupied)
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_only_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    file = found_for(tiny_model("llama", vocab_size=257))

    def download() -> Path:
        pytest.fail("the weights are not needed")

    written = export_huggingface(file, AutoConfig.from_pretrained(checkpoint), download, tmp_path / "c.json")
    assert written == [tmp_path / "c.json"]


def test_initial_tokens_cannot_be_exported() -> None:
    model = tiny_model("llama")
    with pytest.raises(ExportError, match="--drop-initial-tokens"):
        huggingface_config(found_for(model, initial_tokens=4), model.config)


def test_a_pair_that_one_configuration_cannot_hold() -> None:
    model = tiny_model("llama")
    long, geometry = found_for(model), read_geometry(model.config)
    of, lambdas = FactorsModel.of("m", None, geometry), [1.1] * geometry.pairs
    content = huggingface_config(long, model.config, factors_file(Factors.of(lambdas, 0, 1.17), of, 64))
    assert content["rope_parameters"]["short_factor"] == content["rope_scaling"]["short_factor"] == lambdas
    assert content["rope_parameters"]["long_factor"] == long.rescale_factors
    for factors, target, reason in (
        (Factors.of(lambdas, 0, 1.2), 64, "the attention factor is 1.17 for long inputs and 1.2 for short ones"),
        (Factors.of(lambdas, 2, 1.17), 64, "the short factors keep 2 initial tokens"),
        (
            Factors.of(lambdas, 0, 1.17),
            128,
            "a configuration switches at the original length of 64: readjust them at that length",
        ),
    ):
        with pytest.raises(ExportError, match=reason):
            huggingface_config(long, model.config, factors_file(factors, of, target))
    shorter = factors_file(Factors.of(lambdas, 0, 1.17), of.model_copy(update={"original_length": 32}), 32)
    with pytest.raises(ExportError, match="for an original length of 32, but the long ones for 64"):
        huggingface_config(long, model.config, shorter)
    other = read_geometry(tiny_model("llama", rope_theta=5e5).config)
    foreign = factors_file(Factors.of(lambdas, 0, 1.17), FactorsModel.of("m", None, other), 64)
    with pytest.raises(FactorsError, match="rope_theta"):
        huggingface_config(long, model.config, foreign)


def test_proportional_rope_cannot_be_exported() -> None:
    model = tiny_model("gemma4_text")
    with pytest.raises(ExportError, match="proportional"):
        huggingface_config(found_for(model), model.config)


@pytest.mark.parametrize("name", ["huggingface", "vllm"])
@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_a_language_model_deep_within_a_configuration_is_refused(model_type: str, name: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    geometry = read_geometry(config)
    file = factors_file(Factors.of([1.1] * geometry.pairs), FactorsModel.of("m", None, geometry), 65_536)
    source = Source(file, ModelSpec(id=str(tmp_path)))
    with pytest.raises(ExportError, match="has its language model in none of text_config, llm_config, decoder"):
        engine_named(name).check(source)


def test_factors_of_another_geometry_are_refused() -> None:
    with pytest.raises(FactorsError, match="rotary_dim"):
        huggingface_config(found_for(tiny_model("qwen3")), tiny_model("llama").config)
