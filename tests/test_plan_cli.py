"""``factor-search run PLAN.json``, and the pair through ``factor-search export``."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api.cli import main
from tests.plans import plan_document, stages


def written(folder: Path, document: Any) -> str:
    file = folder / "plan.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(file)


@pytest.fixture(scope="module")
def finished(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("plan")
    plan = written(folder, plan_document(checkpoint, texts))
    assert main(["run", plan, "--out", str(folder / "out")]) == 0
    return plan, folder / "out"


def test_stages_are_told_as_they_come(finished: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = finished
    capsys.readouterr()
    assert main(["run", plan, "--out", str(out), "--from", "evaluate-1"]) == 0
    printed = capsys.readouterr()
    estimate, *lines = printed.err.splitlines()
    assert estimate.startswith("estimate: about ")
    assert lines[:4] == [f"[{n}] {name}: known from before" for n, name in enumerate(names()[:4], start=1)]
    assert lines[4] == "[5] evaluate-1"
    assert "passkeys ..." in lines
    *told, places = printed.out.splitlines()
    assert [line.split()[0] for line in told] == names()
    assert places.split() == [str(out / name) for name in ("export-1/model", "factors.json", "report.html")]
    assert all(Path(place).exists() for place in places.split())
    assert main(["run", plan, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())


def names() -> list[str]:
    return [stage["name"] for stage in stages()]


def test_the_pair_can_be_exported_by_hand(finished: tuple[str, Path], tmp_path: Path) -> None:
    _, out = finished
    command = ["export", "--factors", str(out / "factors.json"), "--short-factors", str(out / "short_factors.json")]
    command += ["--model", str(out / "finetune-1" / "model"), "--format", "huggingface"]
    assert main([*command, "--out", str(tmp_path / "config.json")]) == 0
    by_hand, by_plan = (
        json.loads(file.read_text())["rope_parameters"]
        for file in (tmp_path / "config.json", out / "export-1" / "model" / "config.json")
    )
    assert by_hand == by_plan
    for key, name in (("long_factor", "factors.json"), ("short_factor", "short_factors.json")):
        assert by_hand[key] == json.loads((out / name).read_text())["rescale_factors"]


BAD: dict[str, tuple[Any, list[str], str]] = {
    "no JSON": ("{", [], "is not JSON"),
    "no plan": ({"stages": []}, [], "the plan is not valid: model: Field required"),
    "a stage that is none": ({"model": "M", "data": "x", "stages": [{"kind": "x"}]}, [], "stages.0: Input tag 'x'"),
    "no such stage": ({}, ["--from", "b"], "the plan has no stage b"),
    "a plan's option with a job": (
        {"model": "M", "data": "x", "target_length": 64},
        ["--from", "search-1"],
        "--from goes with a plan",
    ),
    "no such checkpoint": (
        {"stages": [{"kind": "search", "target_length": 128, "budget": 4}, {"kind": "await_checkpoint"}]},
        ["--checkpoint", "nowhere"],
        "there is no model folder nowhere",
    ),
}


@pytest.mark.parametrize(("document", "options", "reason"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    document: Any,
    options: list[str],
    reason: str,
    checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if isinstance(document, dict) and set(document) in (set(), {"stages"}) and document.get("stages") != []:
        document = plan_document(checkpoint, texts) | document
    assert main(["run", written(tmp_path, document), "--out", str(tmp_path / "out"), *options]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("factor-search: error: ")]
    assert len(error) == 1
    assert reason in error[0]


def test_ctrl_c_leaves_what_can_be_resumed(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    patient = stages(**{"finetune-1": {"settings": {"steps": 100_000, "train_length": 64, "checkpoint_every": 1}}})
    plan = written(tmp_path, plan_document(checkpoint, texts, stages=patient))
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "run", plan, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "fine-tuning ...\n":
            break
    process.send_signal(signal.SIGINT)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted in finetune-1: run again to continue"
    assert out.splitlines()[1] == "finetune-1  unfinished"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [stage["status"] for stage in report["stages"]] == ["finished", "unfinished", *["to come"] * 4]
