"""Rules of the house that no linter knows."""

import re
import subprocess
from pathlib import Path

import pytest

from api.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]


def tracked(pattern: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).exists()]


def test_no_file_outgrows_its_idea() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in tracked("*.py")
        if (lines := len(file.read_text().splitlines())) > 400 and "tests" not in file.parts
    }
    assert not long


def test_no_name_that_says_nothing() -> None:
    assert not [file for file in tracked("*.py") if re.fullmatch(r"(utils?|helpers?|common|misc)\.py", file.name)]


def test_commands_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "serve", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    shown = set(re.findall(r"^factor-search ([a-z-]+)", readme, re.MULTILINE))
    assert {"run", "evaluate", "export", "serve", "submit"} <= shown <= set(COMMANDS)


def test_nothing_of_the_machine_it_was_made_on() -> None:
    for file in tracked("*"):
        if file.suffix in (".py", ".md", ".toml", ".txt", "") and file.name != "LICENSE":
            assert not re.search(r"(?<![\w.*])/(work|farm|opt|home)/", file.read_text()), file
