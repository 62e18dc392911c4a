import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factor_search.errors import ExportError, FactorsError, OutputError
from factor_search.export.huggingface import export_huggingface, huggingface_config
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.model.losses import token_losses
from tests.families import FAMILIES, tiny_model

TARGET = 256
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES if name not in ("gemma4_text",)},
    "llama with llama3": ("llama", {"rope_scaling": LLAMA3}),
    "phi3 with a top-level original length": ("phi3", {"original_max_position_embeddings": 32}),
}


def found_for(model: PreTrainedModel, **values: Any) -> FactorsFile:
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], values.pop("initial_tokens", 0), 1.17)
    target = max(TARGET, 4 * geometry.original_length)
    return factors_file(factors, FactorsModel.of("m", None, geometry), target)


@pytest.mark.parametrize(("model_type", "overrides"), CASES.values(), ids=CASES)
def test_plain_transformers_gives_the_same_losses(model_type: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(model_type, **overrides)
    file = found_for(model)
    model.save_pretrained(tmp_path / "source")
    export_huggingface(
        file, AutoConfig.from_pretrained(tmp_path / "source"), lambda: tmp_path / "source", tmp_path / "out"
    )
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for length in (TARGET, 20):  # beyond and within the original length: the profile is static
        tokens = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(4))
        with Injector(model, read_geometry(model.config)) as injector, injector.using([file.factors]):
            ours = token_losses(model, tokens).double().mean().item()
        with torch.inference_mode():
            theirs = exported(input_ids=tokens, labels=tokens).loss.item()
        assert theirs == pytest.approx(ours, rel=1e-5)
        with torch.inference_mode():
            assert model(input_ids=tokens, labels=tokens).loss.item() != pytest.approx(ours, rel=1e-5)


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
        (Factors.of(lambdas, 0, 1.17), 128, "switch at the original length of 64: readjust them at that length"),
    ):
        with pytest.raises(ExportError, match=reason):
            huggingface_config(long, model.config, factors_file(factors, of, target))
    other = read_geometry(tiny_model("llama", rope_theta=5e5).config)
    foreign = factors_file(Factors.of(lambdas, 0, 1.17), FactorsModel.of("m", None, other), 64)
    with pytest.raises(FactorsError, match="rope_theta"):
        huggingface_config(long, model.config, foreign)


def test_proportional_rope_cannot_be_exported() -> None:
    model = tiny_model("gemma4_text")
    with pytest.raises(ExportError, match="proportional"):
        huggingface_config(found_for(model), model.config)


def test_factors_of_another_geometry_are_refused() -> None:
    with pytest.raises(FactorsError, match="rotary_dim"):
        huggingface_config(found_for(tiny_model("qwen3")), tiny_model("llama").config)
