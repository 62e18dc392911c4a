"""Control characters of others never reach a terminal or a line of a log."""

import io
import json
import logging
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.cli import main
from api.cli.display import ProgressDisplay
from api.cli.watch import describe
from api.schemas import Event
from factor_search.errors import SpecError, one_line
from factor_search.visible import HIDDEN, JsonFormatter, VisibleFormatter, VisibleStream, masked, visible
from storage.dashboard.projector import say
from storage.database import Database
from storage.errors import DatabaseError
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


PASSWORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=8, max_size=30).filter(
    lambda one: (
        not set(one) & set('"<>&;,')
        and not one.startswith(("*", "/"))
        and any(map(str.isalpha, one[:5]))
        and not re.match(r"\d+[/?#]", one)
    )
)
"""Those that cannot be taken for a port and a path."""
CARRIERS = {
    "user": "API request to https://user:{}@tracker.example/api/2.0/runs failed",
    "token": "cannot reach 'https://x:{}@collector.example:4318/v1/traces'",
    "database": "postgresql+psycopg://me:{}@db/jobs is away",
    "malformed": "postgres//me:{}@db/jobs",
    "query": "postgresql://db/jobs?user=me&sslpassword={}&sslmode=require",
    "words": "connection failed: host=db password={} port=5432",
    "header": "401 for a request with Authorization: Bearer {}",
    "variable": "key {} is not valid",
}


@pytest.mark.parametrize("carrier", CARRIERS)
@hypothesis_settings(max_examples=40, deadline=None)
@given(password=PASSWORDS, before=st.integers(0, 320))
def test_no_message_and_no_line_of_a_log_has_a_password(carrier: str, password: str, before: int) -> None:
    if carrier == "header":
        password = "".join(one for one in password if one.isalnum()) * 8
    assume(password[:5] not in CARRIERS[carrier].format("") + "x" * 5 + __file__)
    given = CARRIERS[carrier].format(password)
    with pytest.MonkeyPatch.context() as patch:
        if carrier == "variable":
            patch.setenv("WANDB_API_KEY", password)
        said = one_line(OSError("x" * before + " " + given))
        assert len(said) <= 300
        try:
            raise OSError(given)
        except OSError:
            record = logging.LogRecord("a", logging.ERROR, "f", 1, "it failed: %s", (given,), sys.exc_info())
            record.error = given
        shown = [said, VisibleFormatter().format(record), *json.loads(JsonFormatter().format(record)).values()]
    for text in map(str, shown):
        assert password[:5] not in text
    assert all(HIDDEN in text for text in shown[1:2])


@pytest.mark.parametrize(
    "text",
    [
        "hf://datasets/owner/set@0123abc/file.parquet",
        "git+https://host.example/owner/name@main",
        "http://127.0.0.1:8400/v1/jobs/a@b",
        "sqlite:////data/a@b/jobs.db",
        "pad_token=<pad>, max_new_tokens=20, top_k: 5",
        "cannot load the configuration of hf_model: a//b",
    ],
)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert masked(text) == text


def test_the_secret_of_each_kind_of_variable_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc123def,Authorization=Basic%20QUJDREVG")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "short-lived")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    text = (
        "abc123def Basic%20QUJDREVG hunter2 short-lived hf_0123456789abcdefABCD whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2 token"
    )
    assert masked(text) == " ".join([HIDDEN] * 6 + ["token"])


def test_a_database_that_cannot_be_used_is_named_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("postgres://me:hunter2@db/jobs", "postgresql//me:hunter2@db/jobs", "postgresql://me:hunter2@db:port/x"):
        with pytest.raises(DatabaseError) as raised:
            Database(url)
        assert "hunter2" not in str(raised.value)
        assert main(["keys", "list", "--database", url]) != 0
        assert "hunter2" not in capsys.readouterr().err
