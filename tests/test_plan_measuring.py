"""What an evaluation measures, against figures computed by hand."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from factor_search.errors import DataError, SearchFailedError, SpecError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file, parse_factors
from factor_search.job import read_samples
from factor_search.measure import key_tokens
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.figures import share
from factor_search.measure.passkey import Retrieval
from factor_search.measure.passkey_grid import _overall
from factor_search.measure.statistics import summarise
from factor_search.model.loading import load_model
from factor_search.plan.far_reading import KeyTokensSpec, PasskeySpec, RulerSpec
from factor_search.plan.kinds.evaluate import KIND, EvaluateWork
from factor_search.plan.perform import evaluate_candidates, perform
from factor_search.spec import DataSpec, ModelSpec
from factor_search.text.samples import SampleSet, sample_of
from tests.plans import DATA


@pytest.fixture
def work(checkpoint: Path, texts: Path) -> EvaluateWork:
    """Of a plan whose model is its own, with long and short factors at hand."""
    model = ModelSpec(id=str(checkpoint), device="cpu")
    geometry = load_model(model).geometry
    of = FactorsModel.of(model.id, None, geometry)
    long = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], attention_factor=1.1)
    short = Factors.of([1.0 + 0.1 * i for i in range(geometry.pairs)], attention_factor=1.1)
    return EvaluateWork(
        stage="evaluate-1",
        original=model,
        model=model,
        data=DataSpec.model_validate(DATA | {"files": [str(texts / "*.txt")], "least_tokens": 256}),
        factors=factors_file(long, of, 256).as_json(),
        short=factors_file(short, of, 64).as_json(),
        lengths=None,
        passkey=PasskeySpec(depths=3, documents=1),
        harness=[],
        seed=0,
    )


def test_short_context_degradation_and_recovery(work: EvaluateWork, tmp_path: Path) -> None:
    report = perform(work, tmp_path / "a").report
    loaded = load_model(work.model)
    samples = read_samples(work.job, loaded).held_out
    losses: dict[str, list[float]] = {"original": [], "long": [], "short": []}
    for name, document in (("long", work.factors), ("short", work.short or {})):
        factors = Factors.of(document["rescale_factors"], 0, document["attention_factor"])
        for sample in samples.samples:
            windows = SampleSet("held_out", tuple(sample_of("window", part) for part in sample.tokens.reshape(4, 64)))
            with LocalEvaluator(loaded, 64) as evaluator:
                losses[name].append(evaluator.evaluate(factors, windows).loss)
    for sample in samples.samples:
        ids = torch.from_numpy(sample.tokens.reshape(4, 64))
        with torch.inference_mode():
            losses["original"].append(loaded.model(ids, labels=ids).loss.item())
    assert (report["short_window"]["length"], report["short_window"]["windows"]) == (64, 4)
    rows = {row["name"]: row for row in report["short_window"]["rows"]}
    for name, values in losses.items():
        summary = summarise(values, [4 * 63] * len(values))
        assert rows[name]["perplexity"] == pytest.approx(summary.perplexity, rel=1e-5)
        assert rows[name]["standard_error"] == pytest.approx(summary.standard_error, rel=1e-4)
        difference = np.mean(np.array(values) - losses["original"])
        assert rows[name]["difference"] == pytest.approx(difference, abs=1e-5)
    means = {name: np.mean(values) for name, values in losses.items()}
    if means["long"] > means["original"]:
        expected = (means["long"] - means["short"]) / (means["long"] - means["original"])
        assert report["short_window"]["recovered"]["share"] == pytest.approx(expected, rel=1e-3)
    else:
        assert report["short_window"]["recovered"] is None


def test_the_share_that_is_recovered() -> None:
    assert share([0.1, 0.3], [0.2, 0.6]) == {"share": pytest.approx(0.5), "standard_error": pytest.approx(0.0)}
    assert share([0.1], [0.2]) == {"share": 0.5, "standard_error": None}
    assert share([0.1, 0.1], [0.2, -0.3]) is None, "nothing was lost"
    assert share([], []) is None
    rng = np.random.default_rng(0)
    wholes = 1 + 0.1 * rng.normal(size=(2000, 20))
    parts = 0.6 * wholes + 0.1 * rng.normal(size=wholes.shape)
    found = [share(list(one), list(other)) for one, other in zip(parts, wholes, strict=True)]
    spread = np.std([one["share"] for one in found if one])
    assert np.mean([one["standard_error"] for one in found if one]) == pytest.approx(spread, rel=0.05)


def test_passkeys_where_they_fit_kept_as_they_come(work: EvaluateWork, tmp_path: Path) -> None:
    """Of the lengths 64, 128 and 256, a passkey with its question takes more than the first two."""
    undisturbed = perform(work, tmp_path / "a").report["passkey"]
    assert undisturbed["lengths"] == [256]
    assert undisturbed["depths"] == [0.0, 0.5, 1.0]
    assert {cell["count"] for cell in undisturbed["cells"]} == {1}
    assert (undisturbed["overall"]["documents"], undisturbed["overall"]["standard_error"]) == (1, None)
    progress: list[dict[str, Any]] = []

    def interrupt(told: dict[str, Any]) -> None:
        progress.append(told)
        if told.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(work, tmp_path / "b", interrupt)
    assert len(json.loads((tmp_path / "b" / "passkeys.json").read_text())["retrievals"]) == 2
    progress.clear()
    assert perform(work, tmp_path / "b", progress.append).report["passkey"] == undisturbed
    assert [told["step"] for told in progress if "step" in told] == [3]
    file = parse_factors(work.factors).model_copy(update={"target_length": 128, "scale": 2.0})
    nearer = work.model_copy(update={"factors": file.as_json()})
    assert perform(nearer, tmp_path / "c").report["passkey"] is None
    assert perform(work.model_copy(update={"passkey": None}), tmp_path / "d").report["passkey"] is None


def test_whether_a_model_reads_far(work: EvaluateWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of RULER where they fit, kept as they come; and key tokens, of a model that says that it reads so far."""
    monkeypatch.setattr(key_tokens, "GAIN", 0.02)
    monkeypatch.setattr(key_tokens, "LIKELY", -100.0)
    monkeypatch.setenv("FACTOR_SEARCH_CACHE", str(tmp_path / "cache"))
    chooser = KeyTokensSpec(model=work.model.model_copy(update={"original_length": 256}), context=60)
    asked = {"ruler": RulerSpec(tasks=["single", "multi-key"], depths=2), "key_tokens": chooser, "passkey": None}
    far = work.model_copy(update=asked)
    assert far.sha256 != work.sha256
    undisturbed = perform(far, tmp_path / "a").report
    assert undisturbed["ruler"] is None, "the second task does not fit into any length"
    asked["ruler"] = RulerSpec(tasks=["single"], depths=2)
    far = work.model_copy(update=asked)
    undisturbed = perform(far, tmp_path / "a").report
    assert undisturbed["ruler"]["lengths"] == [256]
    assert [one["depth"] for one in undisturbed["ruler"]["scores"]] == [0.0, None, 1.0]
    assert {one["count"] for one in undisturbed["ruler"]["scores"]} == {2}
    chosen = undisturbed["key_tokens"]
    assert 0 < chosen["tokens"] < 2 * 196
    assert [row["name"] for row in chosen["rows"]] == ["found", "none"], "the file names no closed form"
    assert chosen["rows"][0]["tokens"] == chosen["tokens"]
    assert chosen["rows"][1]["difference"] == pytest.approx(chosen["rows"][1]["loss"] - chosen["rows"][0]["loss"])

    progress: list[dict[str, Any]] = []

    def interrupt(told: dict[str, Any]) -> None:
        progress.append(told)
        if told.get("step") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(far, tmp_path / "b", interrupt)
    assert len(json.loads((tmp_path / "b" / "ruler.json").read_text())["answers"]) == 3
    progress.clear()
    again = perform(far, tmp_path / "b", progress.append).report
    assert (again["ruler"], again["key_tokens"]) == (undisturbed["ruler"], undisturbed["key_tokens"])
    assert [told["step"] for told in progress if "step" in told] == [4]

    figures = undisturbed | evaluate_candidates(far, tmp_path / "a", progress.append)
    summary, page = KIND.summary(figures), KIND.section(figures)
    assert "of the facts of 1 task of RULER" in summary
    assert "of key tokens, none " in summary
    assert "single, depth 100%" in page
    assert f"{chosen['tokens']:,} key tokens in 2 documents" in page
    with pytest.raises(DataError, match=r"^200 tokens are too few for the task single"):
        perform(far.model_copy(update={"ruler": RulerSpec(tasks=["single"], lengths=[200])}), tmp_path / "c")


def test_all_passkeys_together_count_by_document() -> None:
    """Two documents at three places each: one found everywhere, one at a single place."""
    right = [True, True, True, False, True, False]
    overall = _overall([Retrieval(one, 1.0, 5) for one in right], 2)
    assert overall == {"accuracy": pytest.approx(4 / 6), "standard_error": pytest.approx(1 / 3), "documents": 2}


def test_the_ladder(work: EvaluateWork, tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    climbed = evaluate_candidates(work, tmp_path, progress.append)["ladder"]
    assert [told["step"] for told in progress[1:]] == list(range(1, len(climbed["rungs"]) + 1))
    assert progress[-1]["steps"] == len(climbed["rungs"])
    assert climbed["lengths"] == [64, 128, 256]
    again = evaluate_candidates(work.model_copy(update={"lengths": [128]}), tmp_path, progress.append)["ladder"]
    assert again["rungs"] == [rung for rung in climbed["rungs"] if rung["length"] != 64], "the target is always there"


def test_tasks_of_the_harness(work: EvaluateWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def wrap(pretrained: Any, tokenizer: Any, batch_size: int) -> Any:
        return pretrained

    class TaskManager:
        all_tasks = ("piqa", "bad")

    def simple_evaluate(model: Any, tasks: list[str], task_manager: Any) -> dict[str, Any]:
        assert isinstance(task_manager, TaskManager)
        asked.append((tasks, model(torch.arange(100)[None]).logits))
        if "bad" in tasks:
            raise KeyError("no such task")
        return {"results": {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}}}

    for name, content in {
        "lm_eval": {"simple_evaluate": simple_evaluate, "__spec__": math},
        "lm_eval.models": {},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "lm_eval.models.huggingface": {"HFLM": wrap},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    harness = {"harness": ["piqa"], "passkey": None}
    report = perform(work.model_copy(update=harness), tmp_path / "a").report
    assert report["harness"] == {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.1}}
    tasks, logits = asked[0]
    assert tasks == ["piqa"]
    with torch.inference_mode():
        plain = load_model(work.model).model(torch.arange(100)[None]).logits
    assert not torch.allclose(logits, plain), "the factors are in force"
    with pytest.raises(SearchFailedError, match="lm-evaluation-harness fails on bad: 'no such task'"):
        perform(work.model_copy(update=harness | {"harness": ["bad"]}), tmp_path / "b")
    for name, message in (("boolq", "has no task 'boolq'"), ("own.yaml", "not the name of a task")):
        with pytest.raises(SpecError, match=message):
            perform(work.model_copy(update=harness | {"harness": [name]}), tmp_path / "c")
