"""A plan in this process: kept, resumed, changed, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from factor_search.errors import DataError, ExportError, FactorSearchError, ModelLoadError, OutputError, SpecError
from factor_search.factors_file import parse_factors, read_factors
from factor_search.model.injection import Injector
from factor_search.model.loading import load_model
from factor_search.plan import check
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.kinds.export import ExportWork
from factor_search.plan.kinds.search import SearchWork
from factor_search.plan.perform import perform
from factor_search.plan.run import PlanResult, PlanWatcher, run_plan
from factor_search.plan.spec import parse_plan
from factor_search.search.selection import JobWatcher
from factor_search.spec import ModelSpec
from tests.conftest import save_checkpoint
from tests.families import tiny_model
from tests.plans import BUDGET, SETTINGS, plan_document, stages


@pytest.fixture(scope="module")
def finished(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanResult, Path]:
    out = tmp_path_factory.mktemp("plan") / "out"
    return run_plan(parse_plan(plan_document(checkpoint, texts)), out), out


class Interruptions:
    """Tells which stages were known, and raises at an event, or soon in a stage that was not interrupted before."""

    def __init__(self, at: int = 10**9, before: Collection[str] | None = None) -> None:
        self.left = at
        self.before = before
        self.known: dict[str, bool] = {}
        self.steps: list[int] = []

    def watcher(self) -> PlanWatcher:
        return PlanWatcher(stage=self._stage, job=self._job, progress=self._progress)

    def _event(self, *told: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def _stage(self, number: int, work: Work, known: bool) -> None:
        self.known[work.stage] = known
        if self.before is not None and not known and work.stage not in self.before:
            self.left = min(self.left, 3)

    def _job(self, work: SearchWork) -> JobWatcher:
        return JobWatcher(phase=self._event, candidate=self._event, scored=self._event)

    def _progress(self, told: dict[str, Any]) -> None:
        if "loss" in told:
            self.steps.append(told["step"])
        self._event()


MEASURED = ("seconds", "sha256", "checkpoint", "taken", "estimate")
"""Keys of what differs from run to run."""


def essence(result: PlanResult, out: Path) -> Any:
    """All outcomes, but for times and where they lie."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(one) for key, one in value.items() if key not in MEASURED}
        if isinstance(value, list):
            return [cleaned(one) for one in value]
        return value

    outcomes = json.dumps([cleaned(outcome.model_dump(mode="json")) for outcome in result.outcomes])
    for work in result.works:
        outcomes = outcomes.replace(f"{work.kind}-{work.sha256[:16]}", work.stage)
    return json.loads(outcomes.replace(str(out.resolve()), "OUT"))


def weights(outcome: Outcome) -> bytes:
    assert outcome.model is not None
    return (Path(outcome.model.id) / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_as_if_undisturbed(
    finished: tuple[PlanResult, Path], checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    undisturbed, there = finished
    assert undisturbed.status == "finished"
    stopped_in: list[str] = []
    for attempts in range(3, 160, 2):
        events = Interruptions(attempts, stopped_in)
        result = run_plan(parse_plan(plan_document(checkpoint, texts)), tmp_path, events.watcher())
        if result.status == "finished":
            break
        assert result.status == "interrupted"
        stopped_in.append(result.works[-1].stage)
    assert set(stopped_in) >= {"search-1", "finetune-1", "search-2", "readjust-1", "evaluate-1"}
    assert essence(result, tmp_path) == essence(undisturbed, there)
    assert weights(result.outcomes[1]) == weights(undisturbed.outcomes[1])
    assert (tmp_path / "short_factors.json").exists()


def test_run_again_it_does_nothing_again(
    finished: tuple[PlanResult, Path], checkpoint: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, out = finished
    monkeypatch.chdir(out.parent)  # a relative path is the same folder
    events = Interruptions()
    again = run_plan(parse_plan(plan_document(checkpoint, texts)), Path("out"), events.watcher())
    assert all(events.known.values())
    assert again.outcomes == result.outcomes


@pytest.fixture
def own(checkpoint: Path, texts: Path, tmp_path: Path) -> Path:
    """A folder with a finished plan that a test may change."""
    out = tmp_path / "own"
    run_plan(parse_plan(plan_document(checkpoint, texts)), out)
    return out


def rerun(checkpoint: Path, texts: Path, out: Path, changed: dict[str, Any], **options: Any) -> list[str]:
    """Names of the stages that are done again."""
    events = Interruptions()
    document = plan_document(checkpoint, texts, stages=stages(**changed))
    result = run_plan(parse_plan(document), out, events.watcher(), **options)
    assert result.status == "finished"
    return [name for name, known in events.known.items() if not known]


@pytest.mark.slow
def test_what_is_done_again(own: Path, checkpoint: Path, texts: Path) -> None:
    def again(changed: dict[str, Any], **options: Any) -> list[str]:
        return rerun(checkpoint, texts, own, changed, **options)

    assert again({"export-1": {"profile": "static"}}) == ["export-1"]
    assert again({}) == [], "what was there before the change still is"
    assert again({"evaluate-1": {"lengths": [64, 256]}}) == ["evaluate-1"]
    assert again({}, start_over_from="readjust-1") == ["readjust-1", "evaluate-1", "export-1"]
    tuned = own / "finetune-1"
    assert again({"finetune-1": {"settings": SETTINGS | {"checkpoint_every": 5}}}) == []
    before, lines = tuned.resolve(), (own / "search-2" / "evaluations.jsonl").read_text()
    assert again({"search-2": {"budget": 15}})[0] == "search-2"
    grown = (own / "search-2" / "evaluations.jsonl").read_text()
    assert grown.startswith(lines), "a larger budget continues from the known candidates"
    assert len(grown) > len(lines)
    changed = again({"search-2": {"budget": 15}, "finetune-1": {"settings": SETTINGS | {"steps": 3}}})
    assert changed == ["finetune-1", "search-2", "readjust-1", "evaluate-1", "export-1"]
    assert tuned.resolve() != before
    with pytest.raises(SpecError, match="the plan has no stage b, only search-1, finetune-1, search-2"):
        again({}, start_over_from="b")


def test_documents_are_the_same_in_all_stages(finished: tuple[PlanResult, Path]) -> None:
    result, _ = finished
    reports = [outcome.report for outcome in result.outcomes]
    searches = [reports[0], reports[2], reports[3]]
    assert searches[0]["documents"] == searches[1]["documents"] == searches[2]["documents"]
    assert reports[1]["held_out_documents"] == searches[0]["documents"]["held_out"]
    assert reports[1]["documents"] > 0
    assert {row["name"] for row in searches[2]["results"]} >= {"long", "none"} - {searches[2]["winner"]}


def test_the_pair_loads_in_plain_transformers_and_switches(finished: tuple[PlanResult, Path]) -> None:
    result, out = finished
    work, outcome = result.works[-1], result.outcomes[-1]
    assert isinstance(work, ExportWork)
    assert outcome.model is not None
    long, short = parse_factors(work.factors), parse_factors(work.short)
    assert (long.target_length, short.target_length) == (256, 64)
    assert long.attention_factor == short.attention_factor
    assert read_factors(out / "factors.json") == long
    assert read_factors(out / "short_factors.json") == short
    plain = AutoModelForCausalLM.from_pretrained(outcome.model.id).eval()
    ours = load_model(work.model)
    for length, file in ((64, short), (65, long), (256, long)):
        ids = torch.arange(length)[None] % 250
        with torch.inference_mode(), Injector(ours.model, ours.geometry) as injector, injector.using([file.factors]):
            expected = ours.model(ids).logits
        with torch.inference_mode():
            assert torch.equal(plain(ids).logits, expected), length


def test_an_export_that_was_cut_short(finished: tuple[PlanResult, Path], tmp_path: Path) -> None:
    work, outcome = finished[0].works[-1], finished[0].outcomes[-1]
    assert isinstance(work, ExportWork)
    (tmp_path / ".model").mkdir()
    (tmp_path / ".model" / "config.json.part").write_text("{")
    again = perform(work, tmp_path)
    assert again.report == outcome.report
    third = perform(work, tmp_path)
    assert again.taken is not None
    assert again == third.model_copy(update={"taken": again.taken})
    assert {item.name for item in tmp_path.iterdir()} == {"model", "factors.json", "short_factors.json", "export.json"}


def figures_in(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that holds a figure, with its place."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from figures_in(one, f"{place}.{number}")
    elif isinstance(value, dict):
        if {"perplexity", "held_out", "accuracy", "difference", "share"} & set(value):
            yield place, value
        for key, one in value.items():
            yield from figures_in(one, f"{place}.{key}")


def test_every_figure_of_the_report_has_a_standard_error(finished: tuple[PlanResult, Path]) -> None:
    _, out = finished
    report = json.loads((out / "report.json").read_text())
    assert report["status"] == "finished"
    assert all(stage["summary"] for stage in report["stages"])
    found = dict(figures_in(report["stages"]))
    assert len(found) > 40
    for place, figure in found.items():
        for name in ("perplexity", "held_out", "accuracy", "share"):
            assert figure.get(name) is None or figure["standard_error"] is not None, place
        if figure.get("difference") is not None:
            error = figure.get("difference_standard_error", figure.get("standard_error"))
            assert error is not None, place
    evaluated = report["stages"][4]
    assert evaluated["ladder"]["lengths"] == [64, 128, 256]
    assert {"found", "none", "pi", "ntk", "yarn", "llama3"} <= {rung["name"] for rung in evaluated["ladder"]["rungs"]}
    assert [row["name"] for row in evaluated["short_window"]["rows"]] == ["original", "long", "short"]
    assert len(evaluated["passkey"]["cells"]) == 4
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4, "factors, losses, ladder, passkeys"
    for stage in report["stages"]:
        assert stage["name"] in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_a_figure_of_gain_is_the_difference_of_its_measurements(finished: tuple[PlanResult, Path]) -> None:
    result, _ = finished
    first, tuned = result.outcomes[0].report, result.outcomes[1].report
    assert [row["length"] for row in tuned["gain"]] == [64, 128]
    last = tuned["gain"][-1]
    assert last["before"]["perplexity"] == pytest.approx(first["results"][0]["held_out"])
    assert last["difference"] == pytest.approx(last["before"]["loss"] - last["after"]["loss"])
    assert last["difference"] > 0


def test_stages_beside_a_direct_search(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    direct = {"kind": "search", "name": "direct", "model": "original", "target_length": 256, "budget": BUDGET}
    document = plan_document(checkpoint, texts, stages=[*stages()[:3], direct])
    result = run_plan(parse_plan(document), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (comparison,) = report["comparisons"]
    assert (comparison["stage"], comparison["other"], comparison["target_length"]) == ("search-2", "direct", 256)
    first, second = (result.outcomes[number].report["results"][0]["losses"] for number in (2, 3))
    assert comparison["difference"] == pytest.approx(sum(second) / 2 - sum(first) / 2)
    assert comparison["difference_standard_error"] > 0
    assert comparison["summary"] in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "factors.json").read_text()) == result.outcomes[2].factors, "not the direct search's"
    assert not (tmp_path / "short_factors.json").exists()


def test_longrope2(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    """Needles, a critical dimension, and mixed windows; with fewer candidates and steps than the recipe has."""
    recipe = plan_document(checkpoint, texts, stages=None, recipe="longrope2", target_length=256)
    document = parse_plan(recipe).expanded().model_dump(mode="json")
    document["stages"][0]["budget"] = {"candidates": 14}
    document["stages"][1]["settings"] |= {"steps": 6, "learning_rate": 1e-3}
    result = run_plan(parse_plan(document), tmp_path)
    assert result.status == "finished"
    first, tuned, evaluated, _ = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert first["objective"]["kind"] == "needle"
    assert "perplexity of answer tokens" in first["summary"]
    assert first["results"][0]["text_standard_error"] is not None
    assert len(tuned["losses"]) == 6
    assert [row["name"] for row in evaluated["short_window"]["rows"]] == ["original", "long"]
    assert evaluated["short_window"]["recovered"] is None


REFUSED: dict[str, tuple[dict[str, Any], type[FactorSearchError], str]] = {
    "no documents": ({"data": "nowhere/*.txt"}, DataError, "no file matches nowhere"),
    "no training documents": ({"training_files": ["nowhere/*.txt"]}, DataError, "no file matches nowhere"),
    "a length that is not above the model's": (
        {"stages": [{"kind": "search", "target_length": 64}]},
        SpecError,
        "lengths must grow: search-1 is for 64 tokens, not above the model's original length of 64",
    ),
    "a recipe's middle that is not": (
        {"stages": None, "recipe": "longrope", "target_length": 256},
        SpecError,
        "search-1 is for 64 tokens, .*; with a recipe, give middle_length",
    ),
    "a critical dimension that the model has not": (
        {"stages": [{"kind": "search", "target_length": 128, "space": {"critical_dimension": 64}}]},
        SpecError,
        r"space\.critical_dimension is 64",
    ),
    "passkeys that do not fit": (
        {"stages": [{"kind": "search", "target_length": 256}, {"kind": "evaluate", "passkey": {"lengths": [256, 64]}}]},
        DataError,
        "evaluate-1: passkey.lengths: 64 tokens are too few for a needle",
    ),
    "tasks of RULER that do not fit": (
        {"stages": [{"kind": "search", "target_length": 256}, {"kind": "evaluate", "ruler": {"lengths": [256, 96]}}]},
        DataError,
        "evaluate-1: ruler: 96 tokens are too few for the task single",
    ),
    "tasks of RULER in a template that the tokenizer has not": (
        {"stages": [{"kind": "search", "target_length": 256}, {"kind": "evaluate", "ruler": {"chat": True}}]},
        DataError,
        "evaluate-1: ruler: the tokenizer has no chat template",
    ),
    "a model that is not there": ({"model": "./nowhere"}, ModelLoadError, "there is no model folder ./nowhere"),
    "a harness that is not installed": (
        {"stages": [{"kind": "search", "target_length": 128}, {"kind": "evaluate", "harness": ["piqa"]}]},
        SpecError,
        "harness tasks need the package lm_eval",
    ),
}


@pytest.mark.parametrize(("changes", "kind", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_end_well_is_refused_before_it_begins(
    changes: dict[str, Any],
    kind: type[FactorSearchError],
    reason: str,
    checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=reason):
        run_plan(parse_plan(plan_document(checkpoint, texts, **changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_need_peft(checkpoint: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = plan_document(checkpoint, texts, stages=stages(**{"finetune-1": {"settings": {"method": "lora"}}}))
    check.check_plan(parse_plan(document))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FactorSearchError, match="finetune-1: method 'lora' needs the package peft"):
        check.check_plan(parse_plan(document))


def test_a_model_whose_configuration_cannot_hold_factors(texts: Path, tmp_path: Path) -> None:
    source = save_checkpoint(tiny_model("gemma4_text", vocab_size=257), tmp_path / "gemma4")
    with pytest.raises(ExportError, match="proportional RoPE"):
        check.check_plan(parse_plan(plan_document(source, texts)))


def test_a_folder_of_something_else(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    spec = parse_plan(plan_document(checkpoint, texts))
    (tmp_path / "factors.json").write_text("{}")
    with pytest.raises(OutputError, match="holds results that are not of a plan"):
        run_plan(spec, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot use"):
        run_plan(spec, tmp_path / "file")


def test_files_that_come_later_are_noticed(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    """The documents would be split anew: searched documents could then be held out, or held-out ones trained on."""
    own = tmp_path / "texts"
    shutil.copytree(texts, own)
    spec = parse_plan(plan_document(checkpoint, own))

    def stop(number: int, work: Work, known: bool) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(spec, tmp_path / "out", PlanWatcher(stage=stop))
    for number in range(6):
        (own / f"000{number}.txt").write_text(f"Later {number}. " + f"another{number}; " * 60)
    with pytest.raises(DataError, match="the documents are no longer those of the first stages"):
        run_plan(spec, tmp_path / "out")
    for number in range(6):
        (own / f"000{number}.txt").unlink()
    assert run_plan(spec, tmp_path / "out").status == "finished"


def test_killed_during_fine_tuning(
    finished: tuple[PlanResult, Path], checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    undisturbed, there = finished
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    document = plan_document(checkpoint, texts, stages=stages()[:2])
    document["data"]["least_tokens"] = 256  # as the undisturbed plan has it, for its later stages
    plan.write_text(json.dumps(document))
    program = (
        "import sys, time\n"
        "from api.cli import main\n"
        "from api.cli.progress import PlanProgress\n"
        "report_progress = PlanProgress._report_progress\n"
        "def slowly(self, told):\n"
        "    report_progress(self, told)\n"
        "    if told.get('step') == 5: print('five', flush=True); time.sleep(60)\n"
        "PlanProgress._report_progress = slowly\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", str(plan), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ.copy(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "five\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()
    events = Interruptions()
    result = run_plan(parse_plan(document), out, events.watcher())
    assert events.known == {"search-1": True, "finetune-1": False}
    assert events.steps == [5, 6], "from the last checkpoint, of step 4"
    assert essence(result, out) == essence(undisturbed, there)[:2]
    assert weights(result.outcomes[1]) == weights(undisturbed.outcomes[1])


def test_another_process_at_the_same_folder(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    spec = parse_plan(plan_document(checkpoint, texts))

    def intrude(number: int, work: Work, known: bool) -> None:
        with pytest.raises(OutputError, match="is being written by another process"):
            run_plan(spec, tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(spec, tmp_path, PlanWatcher(stage=intrude))


def test_a_model_that_was_taken_away_is_made_again(own: Path, checkpoint: Path, texts: Path) -> None:
    for item in (own / "finetune-1" / "model").iterdir():
        item.unlink()
    (own / "finetune-1" / "model").rmdir()
    assert rerun(checkpoint, texts, own, {}) == ["finetune-1"]


def test_the_plans_model_is_kept_as_it_was_asked_for(finished: tuple[PlanResult, Path]) -> None:
    made = finished[0].outcomes[1].model
    assert made is not None
    assert made == ModelSpec(id=made.id, device="cpu", original_length=64)
