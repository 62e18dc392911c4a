"""Specifications from flags, from a file, and from both."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.cli import main
from factor_search.plan.spec import parse_plan
from factor_search.spec import parse_spec

JOB: dict[str, Any] = {"model": "m", "data": {"dataset": "pg19", "split": "test"}, "target_length": 512, "budget": 50}
PLAN: dict[str, Any] = {
    "model": "m",
    "data": "a.txt",
    "stages": [{"kind": "search", "target_length": 512, "budget": 50}, {"kind": "export"}],
}
FLAGS = ["--model", "M", "--data", "a.txt", "b.txt", "--target-length", "1024"]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def printed(*arguments: str, spec: Any = None, command: str = "run") -> Any:
        if spec is not None:
            (tmp_path / "spec.json").write_text(json.dumps(spec))
            arguments = ("spec.json", *arguments)
        assert main([command, *arguments, "--print-spec"]) == 0
        return json.loads(capsys.readouterr().out)

    return printed


@pytest.mark.parametrize("command", ["run", "submit"])
def test_flags_alone(printed: Any, command: str) -> None:
    document = printed(*FLAGS, command=command)
    assert document == {"model": {"id": "M"}, "data": {"files": ["a.txt", "b.txt"]}, "target_length": 1024}
    short = ["--strategy", "cma", "--candidates", "30", "--seed", "7", "--name", "8"]
    more = printed(*FLAGS, *short, command=command)
    expected = {"strategy": {"kind": "cma"}, "budget": {"candidates": 30}, "seed": 7, "name": "8"}
    assert more == document | expected
    assert parse_spec(more).sha256 == parse_spec(document | expected).sha256, "what is printed can be kept as a file"


def test_nothing_is_done(printed: Any, tmp_path: Path) -> None:
    printed(*FLAGS, "--out", "out")
    assert list(tmp_path.iterdir()) == []


def test_flags_override_a_file(printed: Any) -> None:
    document = printed("--data", "x.txt", "--candidates", "9", "--model", "other", spec=JOB)
    assert document["data"] == {"files": ["x.txt"], "split": "test"}, "the data set is replaced"
    assert (document["budget"], document["model"], document["target_length"]) == (
        {"candidates": 9},
        {"id": "other"},
        512,
    )


def test_any_field_can_be_set(printed: Any) -> None:
    fields = {
        "space.initial_tokens": [0],
        "budget.tokens": 1000,
        "model.dtype": "float32",
        "objective.kind": "needle",
        "objective.digits": 5,
        "strategy.kind": "cma",
        "strategy.knots": 4,
        "data.split": "train",
        "racing.error_rate": 0.05,
        "warm_start.rescale_factors": [[1.0, 2.0]],
    }
    settings = [
        f"--set={key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in fields.items()
    ]
    document = printed(*settings, spec=JOB)
    for key, value in fields.items():
        inner = document
        for part in key.split("."):
            inner = inner[part]
        assert inner == value
    assert document["budget"]["candidates"] == 50, "a short form is kept beside what is added"
    assert printed("--seed", "3", "--set", "seed=4", spec=JOB)["seed"] == 4, "--set has the last word"
    assert printed("--set", 'name="7"', spec=JOB)["name"] == "7"
    assert printed("--set", "name=a=b", spec=JOB)["name"] == "a=b"


def test_plans(printed: Any) -> None:
    recipe = printed(*FLAGS, "--recipe", "longrope", "--set", "middle_length=512")
    assert (recipe["recipe"], recipe["target_length"], recipe["middle_length"]) == ("longrope", 1024, 512)
    parse_plan(recipe)
    changed = printed("--set", "stages.0.budget=9", "--set", "stages.0.budget.tokens=5", spec=PLAN)
    assert changed["stages"][0]["budget"] == {"candidates": 9, "tokens": 5}
    longer = printed("--set", "stages.2.kind=export", "--set", 'stages.1={"kind": "evaluate"}', spec=PLAN)
    assert [stage["kind"] for stage in longer["stages"]] == ["search", "evaluate", "export"]
    listed = printed(
        "--model", "M", "--data", "a", "--set", "stages.0.kind=search", "--set", "stages.0.target_length=64"
    )
    assert listed["stages"][0]["target_length"] == 64


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (
            None,
            [*FLAGS, "--set", "space.monoton=true"],
            "space.monoton: unknown key (--set space.monoton=true, did you ",
        ),
        (None, [*FLAGS, "--set", "sede=3"], "did you mean seed?"),
        ({**JOB, "buget": 3}, [], "buget: unknown key (did you mean budget?)"),
        (None, [*FLAGS, "--set", "seed=three"], "seed: Input should be a valid integer (--set seed=three)"),
        (None, [*FLAGS, "--set", "seed.x=1"], "seed: Input should be a valid integer (--set seed.x=1)"),
        (JOB, ["--set", "target_length.x=1"], "--set target_length.x=1: target_length is 512, which has no x"),
        (PLAN, ["--set", "stages.5.budget=1"], "5 is not a position in this list, which has 2 entries from 0"),
        (PLAN, ["--set", "stages.last.budget=1"], "last is not a position in this list"),
        (
            PLAN,
            ["--set", "stages.0.budgets=1"],
            "budgets: unknown key (--set stages.0.budgets=1, did you mean budget?)",
        ),
        (PLAN, ["--candidates", "3"], "--candidates is for a single search, and this is a plan"),
        (PLAN, ["--strategy", "cma"], "--strategy is for a single search, and this is a plan"),
        (PLAN, ["--target-length", "99"], "go with a recipe"),
        (None, [*FLAGS, "--recipe", "longrop"], "recipe: Input should be 'longrope' or 'longrope2' (--recipe)"),
        (None, [*FLAGS, "--strategy", "genetic"], "(--strategy)"),
        (None, [*FLAGS, "--candidates", "0"], "budget.candidates: Input should be greater than 0 (--candidates)"),
        (None, [*FLAGS, "--from", "search-1"], "--from goes with a plan, and this is a single search"),
        (JOB, ["--checkpoint", "m"], "--checkpoint goes with a plan, and spec.json is a single search"),
        (None, ["none.json", *FLAGS], "cannot read none.json: No such file"),
        (["not", "an object"], FLAGS, "is not valid"),
    ],
)
def test_mistakes_are_one_line_that_names_the_flag(
    spec: Any,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if spec is not None:
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        arguments = ["spec.json", *arguments]
    assert main(["run", *arguments, "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "M", "--out", "x"], "--data, --target-length missing: give SPEC.json, or --model, --data and "),
        (["--set", "stages=[]", "--out", "x"], "--model, --data missing"),
        (FLAGS, "--out missing: name the folder for the results"),
        ([*FLAGS, "--set", "seed"], "'seed' is not KEY=VALUE"),
        ([*FLAGS, "--set", "a..b=1"], "'a..b=1' is not KEY=VALUE"),
        ([*FLAGS, "--target-length", "long"], "invalid int value: 'long'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
