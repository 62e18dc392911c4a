"""A hub that does not answer is told of early, in one line, by every command that asks it."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from api.cli import main
from factor_search.files import hub
from factor_search.files.hub import asking_hub

ROOT = Path(__file__).parents[1]
OF_A_SEARCH = ["--model", "owner/silent", "--data", "texts.txt", "--target-length", "256"]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub whose client tries for a second, and then gives up."""

    def tries(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a text " * 400)
    monkeypatch.setattr(hub, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(hub, "_told", set())
    monkeypatch.setattr("transformers.utils.cached_file", tries)
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", tries)
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", tries)
    monkeypatch.setattr("datasets.load_dataset_builder", tries)


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "--model", "owner/silent"],
        ["estimate", *OF_A_SEARCH],
        ["run", *OF_A_SEARCH, "--out", "out"],
        ["evaluate", "--model", "owner/silent", "--data", "texts.txt", "--length", "256"],
        ["methods", "--model", "owner/silent", "--target-length", "256"],
        ["reproduce", "owner/silent"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_that_the_hub_is_silent(
    command: Sequence[str], silent: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert main(command) == 1
    said = [record.getMessage() for record in caplog.records if "has not answered" in record.getMessage()]
    assert len(said) == 1, "once, however often it is asked"
    assert "owner/silent" in said[0]
    assert "HF_HUB_OFFLINE=1" in said[0]
    assert capsys.readouterr().err.count("\n") >= 1


def test_a_data_set_too(silent: None, caplog: pytest.LogCaptureFixture) -> None:
    from factor_search.errors import DataError
    from factor_search.text.data_sets import hub_rows

    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="no network"):
        list(hub_rows("owner/set", None, "train", "text", None))
    assert "for owner/set" in caplog.text


def test_a_hub_that_answers_is_not_told_of(silent: None, caplog: pytest.LogCaptureFixture) -> None:
    with asking_hub("owner/quick"):
        pass
    time.sleep(0.2)
    assert caplog.records == []


def test_without_a_network_a_command_says_so_within_seconds(tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    code = "import sys; from factor_search.files import hub; hub.SILENT_SECONDS = 1.0; from api.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", "--model", "owner/silent"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert process.poll() is None, "it still tries"
    finally:
        process.kill()
        process.communicate()
    assert line.startswith("the hub (http://127.0.0.1:9) has not answered for 1 s"), line
