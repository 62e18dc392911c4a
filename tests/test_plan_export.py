"""What an export stage can be asked for, known at submission: formats, profiles, and the kind of model."""

from pathlib import Path
from typing import Any

import pytest

from factor_search.errors import ExportError, SpecError
from factor_search.plan.check import check_plan
from factor_search.plan.spec import parse_plan
from tests.conftest import save_checkpoint
from tests.families import tiny_model
from tests.gguf_files import file_of
from tests.plans import plan_document, stages


def checked(model: Path, texts: Path, *names: str, **export: Any) -> None:
    """Check a plan of the named stages with this export at its end."""
    plain = {name: {"space": {"initial_tokens": [0]}} for name in ("search-1", "search-2")}
    chosen = [stage for stage in stages(**plain) if stage["name"] in names]
    last = {"kind": "export", "name": "export-1"} | export
    check_plan(parse_plan(plan_document(model, texts, stages=[*chosen, last])))


@pytest.mark.parametrize("format", ["huggingface", "vllm", "sglang", "mlx", "exllamav3", "tensorrt-llm"])
def test_formats_for_a_folder(format: str, checkpoint: Path, texts: Path) -> None:
    checked(checkpoint, texts, "search-1", format=format)
    checked(checkpoint, texts, "search-1", "finetune-1", format=format)


@pytest.mark.parametrize("format", ["vllm", "mlx", "tensorrt-llm"])
def test_switching_is_for_formats_that_switch(format: str, checkpoint: Path, texts: Path) -> None:
    pair = ("search-1", "finetune-1", "readjust-1")
    checked(checkpoint, texts, *pair, profile="switching")
    checked(checkpoint, texts, *pair, profile="switching", format=format, nearest=True)
    with pytest.raises(ExportError, match=r"export-1: .*the nearest is the long factors for all inputs"):
        checked(checkpoint, texts, *pair, profile="switching", format=format)


def test_a_model_that_an_engine_does_not_know(tmp_path: Path, texts: Path) -> None:
    folder = save_checkpoint(tiny_model("glm4", vocab_size=257), tmp_path / "glm4")
    checked(folder, texts, "search-1")
    with pytest.raises(ExportError, match=r"export-1: .*interleaved RoPE"):
        checked(folder, texts, "search-1", format="vllm")


def test_a_made_checkpoint_is_a_folder(tmp_path: Path, checkpoint: Path, texts: Path) -> None:
    file = file_of(tmp_path)
    checked(file, texts, "search-1", format="gguf")
    checked(file, texts, "search-1", "finetune-1", format="vllm")
    for model in (file, checkpoint):
        with pytest.raises(ExportError, match="export-1: finetune-1 is a folder of Hugging Face"):
            checked(model, texts, "search-1", "finetune-1", format="gguf")
    with pytest.raises(ExportError, match=r"export-1: .* is a GGUF file"):
        checked(file, texts, "search-1", format="vllm")


def test_a_file_that_must_be_rewritten(tmp_path: Path, texts: Path) -> None:
    file = file_of(tmp_path, "qwen2")
    checked(file, texts, "search-1", format="gguf", nearest=True)
    with pytest.raises(ExportError, match="rewritten as architecture llama"):
        checked(file, texts, "search-1", format="gguf")


@pytest.mark.parametrize(("format", "message"), [("x", "unknown format 'x'"), ("tgi", "there is no export for tgi")])
def test_formats_that_do_not_exist(format: str, message: str, checkpoint: Path, texts: Path) -> None:
    with pytest.raises(SpecError, match=message):
        checked(checkpoint, texts, "search-1", format=format)
