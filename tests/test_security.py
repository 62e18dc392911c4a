"""Each promise of docs/security.md names tests that hold it, and these exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
PROMISES = re.findall(r"^\| ([^|]+?) \| ([^|]*tests/[^|]*?) \|$", PAGE, re.MULTILINE)


def names_in(file: Path) -> set[str]:
    """The names of its tests; those of a class behind the name of the class."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        names |= {prefix + item.name for item in inside if isinstance(item, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("promise", "tests"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_a_promise_is_held_by_tests_that_exist(promise: str, tests: str) -> None:
    named = re.findall(r"`(tests/test_\w+\.py)::([\w:]+)`", tests)
    assert named
    assert re.sub(r"`tests/test_\w+\.py::[\w:]+`(, )?", "", tests) == "", "a promise names tests and nothing else"
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert name in names_in(ROOT / file), f"{file} has no {name}"
        assert name.rpartition("::")[2].startswith("test_")


def test_every_row_of_the_promises_names_tests() -> None:
    promised = PAGE.partition("## What is promised")[2].partition("## What is not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
    assert len(rows) == len(PROMISES) >= 20


def test_no_test_is_named_elsewhere_in_the_documentation_that_does_not_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for file, name in re.findall(r"(tests/test_\w+\.py)::([\w:]+)", page.read_text()):
            assert name in names_in(ROOT / file), f"{page.name}: {file}::{name}"
