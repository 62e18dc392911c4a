"""The tutorial, word for word: each block as it stands, in one shell, in a fresh copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factor_search.factors_file import read_factors
from tests.conftest import save_checkpoint
from tests.documentation import ROOT
from tests.families import tiny_model

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = (
    ".git",
    ".venv",
    ".engines",
    "build",
    "*_cache",
    ".hypothesis",
    "__pycache__",
    "*-results",
    "results",
    "smollm2",
)
OWN = {"MODEL=path/or/hub-id": "MODEL=models/own", "TARGET=32768": "TARGET=256"}
"""The lines that the tutorial asks to set to one's own; documents are where it has them."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy with the virtual environment that this test runs in, as ``make install`` leaves it."""
    environment = Path(sys.prefix)
    if not (environment / "installed").exists():
        pytest.skip("this Python is not in an environment that make install has made")
    folder = tmp_path / "factor-search"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for file in ("pyproject.toml", "constraints.txt"):
        os.utime(folder / file, (0, 0))
    (folder / ".venv").symlink_to(environment)
    return folder


def own_things(folder: Path) -> None:
    """A model of 64 tokens and documents, as a user has them."""
    save_checkpoint(tiny_model("llama", vocab_size=257), folder / "models" / "own")
    (folder / "books").mkdir()
    for number in range(20):
        (folder / "books" / f"{number:02}.txt").write_text(f"word{number} and more; " * (20 + number))


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes, on a machine that does nothing else
def test_word_for_word(clone: Path) -> None:
    own_things(clone)
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text())
    assert [language for language, _ in blocks].count("sh") >= 8
    script = ["set -eu"]
    for number, (language, content) in enumerate(blocks):
        if language == "python":
            (clone / f"block{number}.py").write_text(content)
            content = f"python block{number}.py\n"
        for shown, own in OWN.items():
            content = content.replace(shown, own)
        script.append(content)
    assert sum(line.strip() in OWN.values() for part in script for line in part.splitlines()) == len(OWN)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FACTOR_SEARCH_", "VIRTUAL_"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if "FACTOR_SEARCH_CACHE" in os.environ:
        environment["FACTOR_SEARCH_CACHE"] = os.environ["FACTOR_SEARCH_CACHE"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1024 longrope\n" in done.stdout, "as the tutorial says"
    assert "found" in done.stdout
    for folder, model in (("first", "factor_search/testbed/checkpoint"), ("results", "models/own")):
        factors = read_factors(clone / folder / "factors.json")
        assert factors.model.id == model
        assert factors.perplexity.held_out is not None
    assert json.loads((clone / "extended-model" / "config.json").read_text())["max_position_embeddings"] == 256
