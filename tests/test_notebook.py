"""The notebook of examples/ runs, and results show themselves in notebooks."""

import json
import math
import resource
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

import factor_search as fs
from factor_search.export.verification.verify import Verdict, Verification
from factor_search.factors_file import FactorsModel, MeasuredPerplexity, factors_file
from factor_search.files.html import html_numbers, html_table, html_values
from factor_search.interface import SearchResult
from factor_search.measure.comparison import Difference
from factor_search.measure.measurement import PasskeyResult, PerplexityResult
from factor_search.measure.passkey import Cell
from factor_search.measure.statistics import summarise
from factor_search.search.notebook import notebook_watcher
from tests.synthetic import geometry
from tests.test_report import FOUND, result

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_search.ipynb"
VOID = {"meta", "br", "path", "img"}


class Page(HTMLParser):
    """Reads HTML: its elements, and whether they are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outputs(cell: Any, kind: str) -> str:
    return "".join("".join(out["data"].get(kind, "")) for out in cell.outputs if "data" in out)


def processor_seconds() -> float:
    """Of processes that have ended, which other tests beside this one do not change."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_in_seconds_and_shows_progress_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "FACTOR_SEARCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = processor_seconds()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert processor_seconds() - before < 60
    cells = {cell.id: cell for cell in notebook.cells}
    progress = outputs(cells["search"], "text/html")
    assert "comparing predictions in short texts" in progress
    assert "16 candidates" in progress
    assert 'value="1.0000"' in progress
    shown = outputs(cells["result"], "text/html")
    assert shown.count("<svg") == 3
    assert "yarn" in shown
    assert "Rescale factors" in outputs(cells["factors"], "text/html")
    assert "nats per token" in outputs(cells["evaluate"], "text/html")
    errors = [out for cell in cells.values() for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    assert not errors, errors


def test_the_notebook_is_stored_without_outputs_and_paths() -> None:
    content = json.loads(NOTEBOOK.read_text())
    nbformat.validate(content)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len(NOTEBOOK.read_bytes()) < 8000


class TestReprs:
    def test_a_search_shows_table_and_plots_escaped(self) -> None:
        job = result()
        html = SearchResult(job)._repr_html_()
        page = Page(html)
        assert page.elements.count("svg") == 3
        assert "entropy-abf" in page.text
        for forbidden in ("<script", "<link", "src=", "@import", "<style>body"):
            assert forbidden not in html
        assert "background:#fff" in html, "plots are legible on a dark page"

    def test_a_partial_result_shows_itself(self) -> None:
        partial = result(winner="", validation={}, held_out={}, finalists={}, interrupted=True)
        assert "partial result" in Page(SearchResult(partial)._repr_html_()).text

    def test_the_plots_are_a_figure(self, tmp_path: Path) -> None:
        figure = SearchResult(result()).plot()
        assert len(figure.axes) == 3
        assert [axes.get_xlabel() for axes in figure.axes] == ["rotary pair i", "tokens", "evaluation"]
        figure.savefig(tmp_path / "plots.png")
        assert (tmp_path / "plots.png").stat().st_size > 10_000

    def test_values_show_themselves(self) -> None:
        model = FactorsModel.of("<b>m</b>", None, geometry(pairs=16))
        measured = MeasuredPerplexity(held_out=2.5, held_out_baselines={"yarn": 3.25})
        summary = summarise([1.0, 1.5], [100, 100])
        cells = [Cell(256, depth, 0.75, 0.1, 4, 1.5) for depth in (0.0, 1.0)]
        verification = Verification(
            engine="<engine>", version="1", format="gguf", tokens=300, positions=32, mean=1e-6, p99=1e-6, max=1e-6,
            mean_to_unscaled=0.5, unscaled_mean=0.5, unscaled_max=0.9, verdict=Verdict.EQUAL, exact=True,
            mean_to_others={}, nearest=None,
        )  # fmt: skip
        for value, words in (
            (FOUND, ["initial tokens", "16 factors"]),
            (factors_file(FOUND, model, 1024, measured), ["<b>m</b>", "held-out, yarn", "3.2500", "256 to 1,024"]),
            (PerplexityResult(task="perplexity", factors=FOUND, summary=summary), ["3.490343", "standard error"]),
            (PasskeyResult(factors=FOUND, cells=cells), ["depth 100%", "75%"]),
            (Difference(0.5, math.nan, 1), ["+0.5000 nats per token on 1 document"]),
            (verification, ["<engine> 1 computes with the factors"]),
        ):
            page = Page(value._repr_html_())  # type: ignore[attr-defined]
            for word in words:
                assert word in page.text, word
            assert not {"b", "engine"} & set(page.elements)

    @given(st.lists(st.text(), min_size=1, max_size=4), st.text(), st.floats(0.01, 1e9))
    @settings(max_examples=15, deadline=None)
    def test_no_text_becomes_an_element(self, cells: list[str], title: str, number: float) -> None:
        allowed = {"table", "tr", "th", "td", "div", "strong", "details", "summary", "code"}
        for html in (
            html_table(cells, [cells]),
            html_values(title, dict.fromkeys(cells, title)),
            html_numbers(title, [number]),
        ):
            assert set(Page(html).elements) <= allowed


class TestWatcher:
    def test_outside_of_a_notebook_it_prints_phases(self, checkpoint: Path, texts: Path, capsys: Any) -> None:
        data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2}
        model = {"id": str(checkpoint), "device": "cpu"}
        fs.search_factors(model, data | {"held_out_documents": 2}, 128, budget=9, watcher=fs.notebook_watcher())
        said = capsys.readouterr().err
        assert said.splitlines()[0].startswith("loading ")
        assert "measuring on held-out documents ..." in said

    def test_without_ipython_it_prints_phases(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setitem(sys.modules, "IPython", None)
        notebook_watcher().phase("searching")
        assert capsys.readouterr().err == "searching ...\n"

    def test_in_a_notebook_one_display_is_updated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[str] = []

        class Handle:
            def update(self, html: Any) -> None:
                shown.append(html.data)

        monkeypatch.setattr("IPython.get_ipython", lambda: InteractiveShell)
        monkeypatch.setattr("IPython.display.display", lambda html, display_id: Handle())
        monkeypatch.setattr("factor_search.search.notebook.SECONDS", 0.0)
        job = result()
        watcher = notebook_watcher()
        watcher.phase("<searching>")
        watcher.problem(job.problem)
        for count in (1, 2, 3):
            best = job.state.evaluations[count - 1]
            losses = (1.5 - 0.1 * count,)
            job.state.best = replace(best, losses=losses)
            watcher.candidate(job.state)
        watcher.scored("held_out", 4, 8)
        for html in shown:
            Page(html)
        assert "&lt;searching&gt;" in shown[0]
        assert "<polyline" in shown[-1]
        assert 'value="0.5000"' in shown[-1]
        assert f"{np.exp(1.2):.4f}" in shown[-1]
