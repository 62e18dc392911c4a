"""A model whose activations overflow in float16 is refused with what to do, before a search of it."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from api.cli import main
from bench.stub import PREPARED, stub_spec
from factor_search.errors import SearchFailedError, UnsupportedModelError
from factor_search.job import run_job
from factor_search.model.injection import check_finite, probe
from factor_search.model.loading import load_model
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobWatcher, search_and_measure
from factor_search.spec import DataSpec, JobSpec, ModelSpec
from tests.synthetic import SyntheticEvaluator

WHAT_TO_DO = (
    r"in float16, values beyond 65,504 overflow.* give model\.dtype bfloat16 or float32 \(--set model\.dtype=bfloat16"
)


@pytest.fixture(scope="module")
def overflowing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float16 with activations beyond its range, as Gemma 3 has."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("float16") / "model"))
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3000)
        model.model.layers[0].mlp.up_proj.weight.mul_(30)
    model.half().save_pretrained(folder)
    return folder


def test_what_to_do_is_said_before_a_search_and_helps(overflowing: Path, texts: Path, tmp_path: Path) -> None:
    data = DataSpec(files=[str(texts / "*.txt")], search_documents=1, validation_documents=1, held_out_documents=1)
    spec = JobSpec(model=ModelSpec(id=str(overflowing)), data=data, target_length=128)
    with pytest.raises(UnsupportedModelError, match=f"gives non-finite logits on a short input: {WHAT_TO_DO}"):
        run_job(spec, tmp_path)
    loaded = load_model(ModelSpec(id=str(overflowing), dtype="bfloat16"))
    probe(loaded.model, loaded.geometry)


def test_it_is_noticed_on_a_document_too(checkpoint: Path) -> None:
    loaded = load_model(ModelSpec(id=str(checkpoint), dtype="float16"))
    ids = torch.randint(0, 256, (100,)).numpy()
    check_finite(loaded.model, loaded.geometry, ids)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[int(ids[60])] = 1e5
    with pytest.raises(UnsupportedModelError, match=f"not finite on the first 64 tokens of a document: {WHAT_TO_DO}"):
        check_finite(loaded.model, loaded.geometry, ids)
    loaded.model.float()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[int(ids[60])] = float("nan")
    with pytest.raises(UnsupportedModelError, match="in float32 nothing should overflow, so weights are damaged"):
        check_finite(loaded.model, loaded.geometry, ids)


def test_a_search_ends_when_every_closed_form_diverges() -> None:
    geometry = PREPARED.geometry
    evaluator = SyntheticEvaluator([1.0] * geometry.pairs, diverging=frozenset(range(10_000)))
    with pytest.raises(SearchFailedError, match=r"the closed forms are among them\. If the precision is float16"):
        search_and_measure(SearchProblem.of(stub_spec(), geometry), PREPARED.samples, evaluator, JobWatcher())
    assert len(evaluator.calls) < 40


def test_inspect_notes_the_precision(overflowing: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, noted in ((overflowing, True), (checkpoint, False)):
        assert main(["inspect", "--model", str(model)]) == 0
        assert ("give model.dtype bfloat16" in capsys.readouterr().out) == noted
