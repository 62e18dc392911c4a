"""A checkpoint tuned elsewhere: awaited, taken, and refused where it is another model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from api.cli import main
from factor_search.errors import FactorSearchError, ModelLoadError, SpecError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import load_config
from factor_search.plan.checkpoint import accept_checkpoint
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.run import run_plan
from factor_search.plan.spec import parse_plan
from factor_search.spec import ModelSpec
from tests.conftest import save_checkpoint
from tests.families import tiny_model
from tests.plans import BUDGET, plan_document


def awaiting(checkpoint: Path) -> AwaitWork:
    spec = ModelSpec(id=str(checkpoint), device="cpu")
    geometry = read_geometry(load_config(spec))
    factors = Factors.of([1.5] * geometry.pairs)
    file = factors_file(factors, FactorsModel.of(spec.id, None, geometry), 128)
    return AwaitWork(stage="await_checkpoint-1", model=spec, factors=file.as_json())


def tuned(folder: Path, checkpoint: Path) -> Path:
    """The same model with other weights."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0.99 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def configured(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_fits_is_taken(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tuned(tmp_path / "tuned", checkpoint)
    configured(theirs, max_position_embeddings=4096)  # as many trainers leave it: the original length is lost
    monkeypatch.chdir(tmp_path)
    outcome = accept_checkpoint(awaiting(checkpoint), Path("tuned"))
    assert outcome.model == ModelSpec(id=str(theirs), device="cpu", original_length=64)
    assert len(outcome.report["content"]) == 64


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("qwen3", {}, "is a Qwen3ForCausalLM, but the plan's model is a LlamaForCausalLM"),
    "depth": (
        "llama",
        {"num_hidden_layers": 3},
        "its num_hidden_layers is 3, not 2",
    ),
    "width": ("llama", {"intermediate_size": 64}, "its intermediate_size is 64, not 96"),
    "vocabulary": ("llama", {"vocab_size": 300}, "its vocab_size is 300, not 257"),
    "base": ("llama", {"rope_theta": 5e5}, "has rope_theta 500000.0, but the plan's model has 10000.0"),
    "rotary dimensions": ("llama", {"head_dim": 32}, "has rotary_dim 32, but the plan's model has 16"),
}


@pytest.mark.parametrize(("model_type", "changes", "reason"), OTHERS.values(), ids=OTHERS)
def test_another_model_is_refused(
    model_type: str, changes: dict[str, Any], reason: str, checkpoint: Path, tmp_path: Path
) -> None:
    other = save_checkpoint(tiny_model(model_type, **({"vocab_size": 257} | changes)), tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        accept_checkpoint(awaiting(checkpoint), other)
    assert "\n" not in str(refused.value)


def test_what_is_no_whole_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    work = awaiting(checkpoint)

    def refused(change: Any, kind: type[FactorSearchError], reason: str) -> None:
        folder = tuned(tmp_path / "broken", checkpoint)
        change(folder)
        with pytest.raises(kind, match=reason):
            accept_checkpoint(work, folder)
        shutil.rmtree(folder)

    def without_a_weight(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def not_finite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def other_tokens(folder: Path) -> None:
        file = folder / "tokenizer.json"
        document = json.loads(file.read_text())
        vocabulary = document["model"]["vocab"]
        (first, one), (second, two) = list(vocabulary.items())[40:42]
        vocabulary |= {first: two, second: one}
        file.write_text(json.dumps(document))

    refused(lambda folder: (folder / "adapter_config.json").write_text("{}"), ModelLoadError, "holds adapters: merge")
    refused(lambda folder: (folder / "config.json").write_text("{"), ModelLoadError, r"config\.json is not JSON")
    refused(without_a_weight, ModelLoadError, r"lacks 1 weights .* model\.norm\.weight")
    refused(
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"), ModelLoadError, "is not a safetensors file"
    )
    refused(not_finite, UnsupportedModelError, "non-finite logits")
    refused(other_tokens, UnsupportedModelError, "another vocabulary")
    with pytest.raises(ModelLoadError, match="there is no model folder"):
        accept_checkpoint(work, tmp_path / "nowhere")


def waiting_plan(checkpoint: Path, texts: Path) -> dict[str, Any]:
    stages = [
        {"kind": "search", "target_length": 128, "budget": BUDGET},
        {"kind": "await_checkpoint"},
        {"kind": "search", "target_length": 256, "budget": BUDGET},
    ]
    return plan_document(checkpoint, texts, stages=stages)


def test_a_plan_waits(checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    plan.write_text(json.dumps(waiting_plan(checkpoint, texts)))
    command = ["run", str(plan), "--out", str(out)]
    assert main(command) == 3
    printed = capsys.readouterr()
    assert "await_checkpoint-1 waits for a checkpoint tuned with the factors in" in printed.err
    assert "await_checkpoint-1  waiting" in printed.out
    factors = json.loads((out / "await_checkpoint-1" / "factors.json").read_text())
    assert factors == json.loads((out / "factors.json").read_text())

    other = save_checkpoint(tiny_model("qwen3", vocab_size=257), tmp_path / "other")
    assert main([*command, "--checkpoint", str(other)]) == 1
    assert "is a Qwen3ForCausalLM" in capsys.readouterr().err
    theirs = tuned(tmp_path / "tuned", checkpoint)
    assert main([*command, "--checkpoint", str(theirs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [stage["status"] for stage in report["stages"]] == ["finished"] * 3
    assert report["stages"][1]["checkpoint"] == str(theirs)
    second = json.loads((out / "search-2" / "report.json").read_text())
    assert second["spec"]["model"]["id"] == str(theirs)

    with pytest.raises(SpecError, match="no stage waited for"):
        run_plan(parse_plan(waiting_plan(checkpoint, texts)), out, checkpoint=checkpoint)
