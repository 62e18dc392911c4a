"""Control characters of others never reach a terminal or a line of a log."""

import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.cli import main
from api.cli.display import ProgressDisplay
from api.cli.watch import describe
from api.schemas import Event
from factor_search.errors import SpecError
from factor_search.visible import VisibleFormatter, VisibleStream, visible
from storage.dashboard.projector import say
from workers.__main__ import main as coordinator

HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode: controls, formats (of the direction of writing, too), surrogates, separators."""
NASTY = "\x1b[2J\x1b]0;title\x07 a\rb\nc\td \x9b31m \u202eabc\u2066 \u2028 \x7f\x85 \udc80 \U000e0041"
names = st.text(st.characters() | st.sampled_from(NASTY), max_size=40)


def harmful(text: str, kept: str = "") -> list[str]:
    return [one for one in text if unicodedata.category(one) in HARMFUL and one not in kept]


@hypothesis_settings(max_examples=300)
@given(name=names)
def test_no_text_keeps_what_a_terminal_obeys(name: str) -> None:
    shown = visible(name)
    assert harmful(shown) == []
    assert visible(shown) == shown
    kept = [one for one in name if unicodedata.category(one)[0] in "LNPSM"]
    assert [one for one in kept if one not in shown] == []
    if name.isprintable():
        assert shown == name


@hypothesis_settings(max_examples=200)
@given(parts=st.lists(names, max_size=4))
def test_nothing_goes_through_the_stream_of_a_command(parts: list[str]) -> None:
    plain = io.StringIO(newline="")
    stream = VisibleStream(plain)
    for part in parts:
        print(part, file=stream)  # type: ignore[call-overload]
    assert harmful(plain.getvalue(), "\r\n\t") == []
    for line in plain.getvalue().split("\n"):
        assert "\r" not in line.strip("\r")


@hypothesis_settings(max_examples=100)
@given(value=st.dictionaries(names, names, max_size=3))
def test_json_stays_the_same_json(value: dict[str, str]) -> None:
    for is_ascii in (True, False):
        assert json.loads(visible(json.dumps(value, ensure_ascii=is_ascii))) == value


@hypothesis_settings(max_examples=200)
@given(name=names)
def test_a_record_is_one_line_whatever_it_names(name: str) -> None:
    formatter = VisibleFormatter()
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "no file %s: %r", (name, name), None)
    assert len(formatter.format(record).split("\n")) == 1
    assert harmful(formatter.format(record)) == []
    try:
        raise ValueError(name)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed %s", (name,), sys.exc_info())
    first, *others = formatter.format(record).split("\n")
    assert harmful(first) == []
    assert all(line.startswith("    ") and harmful(line, "\t") == [] for line in others), "none looks like a record"


@hypothesis_settings(max_examples=50)
@given(name=names)
def test_events_are_shown_on_one_line(name: str) -> None:
    event = {"number": 1, "at": "2026-01-31T12:00:00Z", "kind": "failed", "data": {"error": name}}
    written = io.StringIO(newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", written)
        ProgressDisplay().say(describe(Event.model_validate(event)))
    assert written.getvalue().count("\n") == 1
    assert harmful(written.getvalue(), "\n") == []


@pytest.mark.parametrize(
    "command", [["inspect", "--model"], ["run"], ["methods", "--model"], ["evaluate", "--factors"]]
)
def test_a_command_tells_of_a_file_in_one_harmless_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\x1b]0;owned\x07\nfactor-search: fine\r\u202e.json"
    (tmp_path / name).write_text('{"\x1b[31m": \x9b}')
    try:
        status = main([*command, str(tmp_path / name)])
    except SystemExit as usage:
        status = int(str(usage.code))
    assert status != 0
    captured = capsys.readouterr()
    assert harmful(captured.out + captured.err, "\n") == []
    assert not [line for line in captured.err.splitlines() if line.startswith("factor-search: fine")]


def test_the_processes_of_a_coordinator_tell_so_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(parsed: object) -> None:
        raise SpecError(f"{NASTY} is not a folder")

    monkeypatch.setattr("workers.__main__._run", refuse)
    assert coordinator(["--database", "sqlite:///x.db"]) == 1
    say(f"job {NASTY}")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("is not a folder")
    assert harmful(first + second) == []
