"""Progress on standard error: a live bar on a terminal, plain lines elsewhere."""

import re

import pytest

from api.cli.display import ProgressDisplay
from api.schemas import Progress


def searched(share: float, generation: int = 0) -> Progress:
    return Progress(
        phase="searching",
        generation=generation,
        candidates=round(200 * share),
        candidates_budget=200,
        tokens=5000,
        seconds=2.5,
        best_perplexity=3.0661,
        closed_form="yarn",
        closed_form_perplexity=3.2723,
        share=share,
    )


def test_the_bar_has_the_best_the_time_left_and_the_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    display = ProgressDisplay()
    display.show(searched(0.25), at=100.0)
    assert " left" not in capsys.readouterr().err, "nothing was watched yet"
    display.show(searched(0.5, generation=3), at=110.0)
    line = "100 of 200 candidates, best 3.0661 (yarn 3.2723), 20 s left, 2,000 tokens/s, generation 3"
    assert re.search(rf" 50 %\|.*\| {re.escape(line)}", capsys.readouterr().err)
    display.show(searched(0.505), at=1110.0)
    assert "33 min left" in capsys.readouterr().err
    display.show(Progress(phase="choosing", share=1.0, scored=1, to_score=4), at=1111.0)
    display.show(Progress(phase="choosing", share=1.0, scored=2, to_score=4), at=1113.0)
    said = capsys.readouterr().err
    assert " 25 %|" in said
    assert "choosing: 2 of 4 candidates, 4 s left" in said, "a phase has a pace of its own"
    display.close()


def test_without_a_terminal_there_is_a_line_for_each_generation_and_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay()
    for number in range(20):
        display.show(searched(number / 20, generation=number // 10), at=100.0 + number)
    for step in range(1, 101):
        display.show(
            Progress(phase="fine-tuning", step=step, steps=100, share=step / 100, loss=2.0, tokens=step), at=step
        )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "generation 0: 0 of 200 candidates, best 3.0661 (yarn 3.2723), 2,000 tokens/s"
    assert lines[1].startswith("generation 1: 100 of 200 candidates, best 3.0661")
    assert lines[1].endswith(", 10 s left")
    assert lines[2] == "fine-tuning: step 1 of 100, loss 2.0000, 1 tokens"
    assert len(lines) == 2 + 11
