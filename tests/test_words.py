"""Words that do not occur: each has a plain English word, or the field's own, in its place (docs/glossary.md)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.py", "*.md", "*.toml", "*.yml")
EXCEPTIONS = {"CHANGELOG.md", "tests/test_words.py"}
"""The first lists the old names beside the new ones, the second the words themselves."""
THING = (
    "folder|port|url|file|plan|job|stage|model|checkpoint|specification|number|id|key|json|database|document|data set"
    "|search|service|server|result|candidate"
)
WORDS = {
    "errand: long-running task": r"errands?",
    "seat: worker slot": r"seats?",
    "hire: start": r"hire[sd]?|hiring",
    "crew: worker backend": r"crews?",
    "doer: the worker, or what does it": r"doers?",
    "doors: interfaces": r"doors?",
    "foot: the pairs before the step": r"foot|feet",
    "turns: rotations": r"turns|(a|one|full|half|its|whose|each|every|per|near|under|above|below) turn",
    "hand in: supply": r"hand(s|ed|ing)?[\s_-]in",
    "dealt: split, assigned": r"dealt|deals?|dealing",
    "brought on: advanced": r"br(ought|ings?|inging)\son",
    "readjusting, as a noun: readjustment": r"readjustings|(a|the|any|each|every|this|that|no|one) readjusting",
    "play a part: be used for": r"play(s|ed|ing)?\s(a|no|any|which|what|different)\sparts?",
    "hear, heard, news: progress reports": r"hear[sd]?|hearing|news",
    "patiently: until it answers": r"patiently",
    "standing: known results": r"standing",
    "plan keeper: plan scheduler": r"plan[\s_]?keepers?",
    "goes on: continues": r"(go|goes|going|gone|went)\son",
    "is no ...: is not a ...": rf"(?<!there )(is|are)\sno\s({THING})",
    "truly: correctly": r"truly",
    "texts lose: short-context degradation": r"(short\s)?texts\slose",
    "the whole way: the full workflow": r"(whole|full)\sway",
    "twin: the same in one process": r"twins?",
    "of both kinds: mixed": r"of\sboth\skinds",
}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What is read, by name of the file."""
    listing = subprocess.run(["git", "ls-files", *PATTERNS], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.splitlines() if name not in EXCEPTIONS and (ROOT / name).exists()]
    return {name: readable((ROOT / name).read_text()) for name in names}


def readable(text: str) -> str:
    """The text in lower case, with the words of names apart: ``RayCrew`` and ``ray_crew`` are ray crew."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).replace("_", " ").lower()


@pytest.mark.parametrize("rule", WORDS)
def test_words_that_do_not_occur(rule: str, texts: dict[str, str]) -> None:
    pattern = re.compile(rf"\b({WORDS[rule]})\b")
    found = []
    for name, text in texts.items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {match[0]!r}")
    assert not found, f"{rule}\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "wrong", "right"),
    [
        ("turns: rotations", "curves over turns", "a tokenizer turned it into ids"),
        ("turns: rotations", "near one turn", "the function returns"),
        ("hire: start", "worker.hired_at", "hierarchy"),
        ("hand in: supply", "plans.hand_in(id)", "handling input"),
        ("crew: worker backend", "ThreadCrew", "screw"),
        ("is no ...: is not a ...", "x is no folder", "there is no folder x"),
        ("dealt: split, assigned", "documents are dealt", "an ideal case"),
    ],
)
def test_patterns_find_words_and_no_others(rule: str, wrong: str, right: str) -> None:
    pattern = re.compile(rf"\b({WORDS[rule]})\b")
    assert pattern.search(readable(wrong))
    assert not pattern.search(readable(right))
