"""Exports in transformers 4, which many engines still carry: ``make engines`` installs it beside the other one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factor_search.export.configuration import huggingface_config, loaded_by
from factor_search.export.huggingface import export_huggingface
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.methods import longrope_attention_factor
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from tests.families import tiny_model

OLDER = os.environ.get("FACTOR_SEARCH_TRANSFORMERS4")
LOGITS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM

assert transformers.__version__.startswith("4."), transformers.__version__
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
with torch.inference_mode():
    torch.save(model(input_ids=torch.arange(3, 93)[None]).logits, sys.argv[2])
"""
FORMULA = longrope_attention_factor(4.0, 64)
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama": ("llama", {}, 1.17),
    "qwen2": ("qwen2", {}, 1.17),
    "glm4": ("glm4", {}, 1.17),
    "smollm3": ("smollm3", {}, 1.17),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}, 1.17),
    "phi3": ("phi3", {"original_max_position_embeddings": 64}, FORMULA),
    "phi3, own attention factor": ("phi3", {"original_max_position_embeddings": 64}, 1.3),
    "olmo3": ("olmo3", {}, 1.17),
}
READ = ("llama", "qwen2", "glm4", "smollm3", "gpt_neox", "phi3")


def export_of(name: str, folder: Path) -> tuple[Path, FactorsFile]:
    model_type, overrides, attention_factor = CASES[name]
    tiny_model(model_type, **overrides).save_pretrained(folder / "source")
    config = AutoConfig.from_pretrained(folder / "source")
    geometry = read_geometry(config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], 0, attention_factor)
    file = factors_file(factors, FactorsModel.of("m", None, geometry), 256)
    export_huggingface(file, config, lambda: folder / "source", folder / "out")
    return folder / "out", file


@pytest.mark.parametrize("name", CASES)
def test_the_export_says_who_reads_it(name: str, tmp_path: Path) -> None:
    out, _ = export_of(name, tmp_path)
    versions, otherwise = loaded_by(json.loads((out / "config.json").read_text()))
    assert (versions, otherwise is None) == ((">=4.57", True) if name in READ else (">=5", False))


def test_phi3_gets_the_three_fields_that_transformers_4_wants() -> None:
    config = tiny_model("phi3", original_max_position_embeddings=64).config
    geometry = read_geometry(config)
    found = Factors.of([1.5] * geometry.pairs, 0, FORMULA)
    content = huggingface_config(factors_file(found, FactorsModel.of("m", None, geometry), 256), config)
    assert set(content["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert content["original_max_position_embeddings"] == 64


@pytest.mark.skipif(OLDER is None, reason="FACTOR_SEARCH_TRANSFORMERS4 does not name a folder with transformers 4")
@pytest.mark.parametrize("name", READ)
def test_transformers_4_computes_the_same(name: str, tmp_path: Path) -> None:
    out, file = export_of(name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(OLDER)}
    command = [sys.executable, "-c", LOGITS, str(out), str(tmp_path / "logits.pt")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()
    with torch.inference_mode(), Injector(model, read_geometry(model.config)) as injector:
        plain = model(input_ids=torch.arange(3, 93)[None]).logits
        with injector.using([file.factors]):
            found = model(input_ids=torch.arange(3, 93)[None]).logits
    older = torch.load(tmp_path / "logits.pt")
    assert (older - found).abs().max() <= 1e-5 * found.abs().max() < (plain - found).abs().max()
