"""The core without the service: what works, and what a service command says instead."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from api.cli import main
from api.cli.commands import CLIENT_PACKAGES, COMMANDS, SERVICE_PACKAGES

ROOT = Path(__file__).parents[1]
BLOCKED = """
import json, sys, warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

blocked, unblocked, calls = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys([*blocked, "starlette"]))  # None: as if it were not installed
from api.cli import main

ended = []
for number, call in enumerate(calls):
    if call is None:
        for name in unblocked:
            del sys.modules[name]
        continue
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(call)
        except SystemExit as exit:
            status = exit.code
    ended.append([status, out.getvalue(), err.getvalue()])
json.dump(ended, sys.stdout)
"""


def called(*calls: list[str] | None) -> list[tuple[int, str, str]]:
    """Status, output and errors of commands in one process without the service; None brings back the client's packages,
    which the core's own dependencies use."""
    arguments = json.dumps([SERVICE_PACKAGES, CLIENT_PACKAGES, calls])
    command = [sys.executable, "-c", BLOCKED, arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert process.returncode == 0, process.stderr
    return [(status, out, err) for status, out, err in json.loads(process.stdout)]


def test_a_service_command_says_what_to_install() -> None:
    calls = [[name] for name, command in COMMANDS.items() if command.needs]
    for (status, out, err), call in zip(called(*calls, ["serve", "--help"], ["--help"]), calls, strict=False):
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert err.startswith(f"factor-search: error: {call[0]} needs the service, and ")
        assert err.endswith("pip install 'factor-search[service]'\n")


def test_help_needs_nothing() -> None:
    status, out, _ = called(["--help"])[0]
    assert status == 0
    assert all(f"\n    {name}" in out for name in COMMANDS)


@pytest.mark.slow
def test_the_core_searches_measures_and_exports(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    data = ["--model", str(checkpoint), "--data", str(texts / "*.txt")]
    documents = [f"--set=data.{part}_documents=2" for part in ("search", "validation", "held_out")]
    out = tmp_path / "out"
    factors = ["--factors", str(out / "factors.json")]
    ended = called(
        None,
        ["run", *data, "--target-length", "128", "--candidates", "10", *documents, "--out", str(out)],
        ["evaluate", *data, "--length", "128", *factors, "--json"],
        ["inspect", "--model", str(checkpoint)],
        ["methods", "--model", str(checkpoint), "--target-length", "128"],
        ["export", *factors, "--format", "huggingface", "--drop-initial-tokens", "--out", str(tmp_path / "model")],
        ["doctor"],
    )
    assert [status for status, _, _ in ended[:-1]] == [0] * 5, [err for _, _, err in ended]
    assert (out / "report.html").exists()
    assert json.loads(ended[1][1])["documents"] == 12
    assert (tmp_path / "model" / "config.json").exists()
    assert "the service is not installed: pip install 'factor-search[service]'" in ended[-1][1]


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_extra_is_what_commands_look_for() -> None:
    extras = project()["optional-dependencies"]
    declared = {requirement.partition(">")[0].partition("[")[0].replace("-", "_") for requirement in extras["service"]}
    assert declared == {*SERVICE_PACKAGES, "plotly"}, "the page shows tables without plotly"
    assert extras["all"] == ["factor-search[data,finetune,gguf,onnx,service,tracing]"]


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'fastapi', 'sqlalchemy', 'matplotlib'}"
    light = [name for name in COMMANDS if name not in ("demo", "serve", "keys")]
    code = (
        "import sys; from api.cli import build_parser; build_parser()\n"
        f"for name in {light!r}: build_parser(name)\n"
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert process.returncode == 0, process.stderr


def test_a_library_that_fails_to_clean_up_after_an_interruption_hides_it_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("type object 'tqdm' has no attribute '_lock'")

    monkeypatch.setattr("api.cli.methods.configure", lambda parser: parser.set_defaults(run=interrupted))
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "factor-search: interrupted\n"
