import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from api.cli import main
from api.cli.demo import specification
from factor_search.model.loading import load_model
from factor_search.spec import ModelSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import HELD_OUT_MODULES, held_out_files, long_lines, training_documents
from factor_search.testbed.train import build_model, held_out_loss, token_stream, train


def test_the_shipped_files_are_small_and_load_with_transformers_alone() -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 8_000_000
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer("def f():")["input_ids"] == list(b"def f():")
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 256
    assert model.config.head_dim == 64
    assert json.loads((CHECKPOINT / "training.json").read_text())["held_out_perplexity_per_byte"] < 3.6


def test_it_is_loaded_whole_by_threads_that_do_so_at_once() -> None:
    """Else tied weights stay untied: transformers patches its own class while it loads."""
    with ThreadPoolExecutor(4) as pool:
        models = [loaded.model for loaded in pool.map(lambda _: load_model(ModelSpec(id=str(CHECKPOINT))), range(16))]
    assert all(model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in models)


def test_perplexity_per_byte_on_unseen_modules() -> None:
    loaded = load_model(ModelSpec(id=str(CHECKPOINT)))
    assert math.exp(held_out_loss(loaded.model, windows_per_module=8)) < 3.6


def test_no_held_out_module_is_trained_on() -> None:
    held_out = [file.read_bytes() for file in held_out_files()]
    assert len(held_out) >= 30
    assert min(map(len, held_out)) > 8192
    documents = training_documents()
    assert len(documents) > 1000
    assert not set(held_out) & set(documents)
    lines = {line for text in held_out for line in long_lines(text)}
    seen = set().union(*(set(long_lines(text)) & lines for text in documents))
    assert len(seen) < 0.05 * len(lines), "few long lines of the held-out modules stand anywhere in the training text"


def test_the_demo_uses_held_out_modules_alone() -> None:
    spec = parse_spec(specification(None))
    assert spec.data.files is not None
    assert {Path(file).stem for file in spec.data.files} <= set(HELD_OUT_MODULES)
    wanted = spec.data.search_documents + spec.data.validation_documents + spec.data.held_out_documents
    assert wanted <= len(spec.data.files)


@pytest.mark.slow
def test_the_promise_of_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short search already beats every closed form on held-out documents beyond the noise, and exports exactly."""
    fewer = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 5}

    def smaller(candidates: int | None) -> dict[str, object]:
        whole = specification(candidates)
        assert isinstance(whole["data"], dict)
        return whole | {"data": whole["data"] | fewer}

    monkeypatch.setattr("api.cli.demo.specification", smaller)
    assert main(["demo", "--candidates", "30", "--out", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["winner"].startswith("found")
    assert report["comparison"]["standard_errors"] > 1
    factors = str(tmp_path / "demo" / "factors.json")
    assert main(["export", "--factors", factors, "--format", "huggingface", "--out", str(tmp_path / "model")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    losses = []
    for source in report["documents"]["held_out"]:
        ids = torch.from_numpy(np.frombuffer(Path(source).read_bytes()[:2048], np.uint8).astype(np.int64))[None]
        with torch.inference_mode():
            losses.append(exported(input_ids=ids, labels=ids).loss.item())
    assert math.exp(np.mean(losses)) == pytest.approx(report["results"][0]["held_out"], rel=1e-5)


@pytest.mark.slow
def test_the_recipe_learns() -> None:
    torch.manual_seed(0)
    model = build_model(hidden=64, layers=1, heads=1, key_value_heads=1, intermediate=64)
    stream = token_stream([b"the quick brown fox jumps over the lazy dog. " * 400])
    before = held_out_loss(model)
    train(model, stream, steps=140, batch=4, muon_rate=6e-3, adam_rate=4e-3, seed=0, compiled=False)
    windows = torch.from_numpy(stream[:256].astype(np.int64))[None]
    with torch.inference_mode():
        after = model(input_ids=windows, labels=windows).loss.item()
    assert after < 1.0 < before


def test_a_time_that_is_too_short_for_the_first_steps_ends_with_the_next() -> None:
    model = build_model(hidden=64, layers=1, heads=1, key_value_heads=1, intermediate=64)
    stream = token_stream([b"the quick brown fox jumps over the lazy dog. " * 40])
    rates = {"muon_rate": 6e-3, "adam_rate": 4e-3}
    assert train(model, stream, seconds=1e-3, context=32, batch=1, **rates, seed=0, compiled=False) == 41
