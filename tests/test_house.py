"""Rules of the house that no linter knows."""

import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
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
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    shown = set(re.findall(r"^factor-search ([a-z-]+)", blocks, re.MULTILINE))
    assert {"run", "evaluate", "export", "serve", "submit"} <= shown <= set(COMMANDS)


def test_nothing_of_the_machine_it_was_made_on() -> None:
    for file in tracked("*"):
        if file.suffix in (".py", ".md", ".toml", ".txt", "") and file.name != "LICENSE":
            assert not re.search(r"(?<![\w.*])/(work|farm|opt|home)/", file.read_text()), file


GROUND_FLOOR = "factor_search"
LIGHT = (
    "storage.jobs",
    "storage.dashboard.projector",
    "api.app",
    "factor_search.plan.spec",
    "factor_search.report.document",
)
"""Values, records and interfaces: what is imported where a server starts, or a notebook looks at results."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("factor_search", "storage", "workers", "api", cache_dir=None)


def rooms(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Which files and folders directly in ``factor_search`` import which others."""
    inside = [module for module in graph.modules if module.startswith(f"{GROUND_FLOOR}.")]
    edges = {
        (one, other) for one in inside for other in graph.find_modules_directly_imported_by(one) if other in inside
    }
    return {(a, b) for one, other in edges if (a := one.split(".")[1]) != (b := other.split(".")[1])}


def test_the_ground_floor_has_few_rooms_and_few_imports_between_them(imports: grimp.ImportGraph) -> None:
    edges = rooms(imports)
    assert len({module.split(".")[1] for module in imports.modules if module.startswith(f"{GROUND_FLOOR}.")}) <= 20
    assert len(edges) <= 90
    assert not circle(edges)


def test_no_circle_of_files(imports: grimp.ImportGraph) -> None:
    edges = {(one, other) for one in imports.modules for other in imports.find_modules_directly_imported_by(one)}
    assert not circle(edges)


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """Members of circles, or what leads from one to the next; empty if there is none."""
    try:
        tuple(TopologicalSorter({one: {b for a, b in edges if a == one} for one, _ in edges}).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")})) == {"a", "b", "c"}


def test_values_records_and_interfaces_load_no_torch() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(*{{'torch', 'transformers', 'ray'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
