"""The documentation as a site: no broken link, nothing loaded from elsewhere, all of the code told."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.cli import build_parser
from api.cli.commands import COMMANDS
from api.publishing.claims import Claims
from factor_search.methods import METHODS
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec
from tests.documentation import ROOT

LOADED = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']?([^"'\s>]+)[^>]*>""")
CELLS = re.compile(r"<td><code>(.*?)</code></td>")
TAGS = re.compile(r"<[^>]+>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error there."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", ROOT / "mkdocs.yml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [*command, "--site-dir", folder], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, "with --quiet, mkdocs would pass over them"
    return folder


def text_of(page: Path) -> str:
    return html.unescape(TAGS.sub("", page.read_text()))


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_all_pages_are_there_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    written = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert written - {"README"} <= pages
    assert "index" in pages
    loaded = [found for page in site.rglob("*.html") for found in LOADED.findall(page.read_text())]
    assert len(loaded) > 100
    assert [place for place in loaded if "//" in place and not place.startswith("data:")] == []
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert re.findall(r"url\(\s*[\"']?(?:https?:)?//", styles) == []


def test_the_generated_pages_tell_all_of_the_code(site: Path) -> None:
    def page(name: str) -> str:
        return text_of(site / "reference" / f"every-{name}.html")

    commands = page("command")
    for name in COMMANDS:
        parser = next(a for a in build_parser(name)._actions if hasattr(a, "choices") and a.choices).choices[name]  # type: ignore[index,call-overload]
        for action in parser._actions:
            assert all(option in commands for option in action.option_strings if option not in ("-h", "--help")), (
                name,
                action,
            )
    for name, model in {"key-of-a-job": JobSpec, "key-of-a-plan": PlanSpec}.items():
        schema, told = model.model_json_schema(), one_line(page(name))  # type: ignore[attr-defined]
        for described in [schema, *schema["$defs"].values()]:
            for key, value in described.get("properties", {}).items():
                assert key in told
                assert one_line(value.get("description", "").replace("`", "")) in told
    assert all(re.search(rf"^{re.escape(name)}\W*$", page("closed-form"), re.MULTILINE) for name in METHODS)
    assert "POST /v1/jobs/{job_id}/pause" in page("route")
    assert "factor_search_http_requests_total" in page("metric")
    formats = one_line(page("file-format"))
    assert "losses_at" in formats
    own = {"Document", "Candidate", "Figure", "Tolerance"}
    schema = Claims.model_json_schema()
    assert own <= set(schema["$defs"])
    for described in [schema, *(schema["$defs"][name] for name in own)]:
        for key, value in described["properties"].items():
            assert key in formats
            assert one_line(value.get("description", "").replace("`", "")) in formats


def test_defaults_are_json(site: Path) -> None:
    pages = [text_of(page) for page in (site / "reference").glob("every-*.html")]
    assert sum(page.count("null") for page in pages) > 5
    cells = [cell for page in (site / "reference").glob("every-*.html") for cell in CELLS.findall(page.read_text())]
    wrong = [
        cell for cell in map(html.unescape, cells) if cell in ("None", "True", "False") or cell[:2] in ("['", "('")
    ]
    assert (len(cells) > 50, wrong) == (True, [])
