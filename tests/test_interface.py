"""The public face: what ``import factor_search`` gives to notebooks and scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import factor_search as fs
from factor_search.errors import FactorsError, SpecError
from factor_search.measure.measurement import PerplexityResult

DATA = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 2}


@pytest.fixture(scope="module")
def found(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[fs.SearchResult, Path]:
    out = tmp_path_factory.mktemp("face") / "results"
    data = DATA | {"files": [str(texts / "*.txt")]}
    model = {"id": str(checkpoint), "device": "cpu"}
    return fs.search_factors(model, data, 128, out=out, budget=12, space={"initial_tokens": [0]}), out


def test_a_search_gives_its_result_and_writes_it(found: tuple[fs.SearchResult, Path]) -> None:
    result, out = found
    assert not result.interrupted
    assert result.factors.target_length == 128
    assert result.factors == fs.load_factors(out / "factors.json")
    assert result.report["search"]["candidates"] == 12
    assert json.loads((out / "report.json").read_text()) == result.report
    assert "yarn" in result.table()


def test_without_a_folder_nothing_is_kept(checkpoint: Path, texts: Path, found: tuple[fs.SearchResult, Path]) -> None:
    files = sorted(str(file) for file in texts.iterdir())
    model = {"id": str(checkpoint), "device": "cpu"}
    again = fs.search_factors(model, DATA | {"files": files}, 128, budget=12, space={"initial_tokens": [0]})
    assert again.factors.factors == found[0].factors.factors


def test_factors_are_applied_to_a_live_model_and_taken_back(
    found: tuple[fs.SearchResult, Path], checkpoint: Path, tmp_path: Path
) -> None:
    factors = found[0].factors
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.arange(100)[None] % 250

    def logits(one: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            computed: torch.Tensor = one(ids).logits
        return computed

    before = logits(model)
    with fs.apply(model, factors) as applied:
        within = logits(applied)
    with fs.apply(model, factors.factors):
        assert torch.equal(logits(model), within), "a candidate acts as the file does"
    assert torch.equal(logits(model), before)
    assert not torch.equal(within, before)
    files = fs.export_factors(factors, tmp_path / "exported").files
    assert tmp_path / "exported" / "config.json" in files
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    torch.testing.assert_close(logits(exported), within, rtol=1e-5, atol=1e-5)
    other = factors.model_copy(update={"model": factors.model.model_copy(update={"rope_theta": 77.0})})
    with pytest.raises(FactorsError, match="rope_theta"), fs.apply(model, other):
        pass


def test_factors_and_closed_forms_are_evaluated(
    found: tuple[fs.SearchResult, Path], checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    fs.save_factors(found[0].factors, tmp_path / "copy.json")
    data, model = str(texts / "*.txt"), {"id": str(checkpoint), "device": "cpu"}
    results = [
        fs.evaluate_factors(model, data, 128, fs.load_factors(tmp_path / "copy.json"), documents=2),
        fs.evaluate_factors(model, [data], 128, method="yarn", documents=2),
        fs.evaluate_factors(model, data, 128, documents=2),
    ]
    perplexities = [result.summary.perplexity for result in results if isinstance(result, PerplexityResult)]
    assert len(set(perplexities)) == 3
    with pytest.raises(SpecError, match="stride"):
        fs.evaluate_factors(model, data, 128, stride=500)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(SpecError, match="strategie: unknown key"):
        fs.search_factors("m", "x.txt", 128, strategie="cma")
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = fs.serach  # type: ignore[attr-defined]


def test_importing_the_package_is_light() -> None:
    code = "import sys, factor_search as fs; fs.Factors, fs.FactorsFile; print('torch' in sys.modules, dir(fs) != [])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True"]
