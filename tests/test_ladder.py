import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ladder import Ladder, ladder
from factor_search.measure.passkey import Cell, as_json
from factor_search.measure.statistics import paired_difference
from factor_search.measure.windows import doubling_lengths
from factor_search.methods import USUAL, closed_forms
from factor_search.model.loading import LoadedModel, load_model
from factor_search.report.palette import FOUND_COLOUR
from factor_search.report.plots import draw_ladder, draw_passkey
from factor_search.spec import ModelSpec
from factor_search.text.samples import SampleSet, sample_of
from tests.synthetic import SyntheticEvaluator, geometry

FOUND = Factors.of([1.0 + 0.3 * i for i in range(8)])
DOCUMENTS = SampleSet(
    "held_out", tuple(sample_of(str(n), np.random.default_rng(n).integers(0, 256, 256)) for n in range(3))
)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(id=str(checkpoint)))


@pytest.fixture(scope="module")
def climbed(loaded: LoadedModel) -> Ladder:
    with LocalEvaluator(loaded, 256) as evaluator:
        return ladder(
            evaluator, loaded.geometry, {"found": FOUND}, DOCUMENTS, [256, 64, 128], also=["mrrope-pro", "long"]
        )


def test_each_length_is_a_window_of_its_own(loaded: LoadedModel, climbed: Ladder) -> None:
    assert climbed.lengths == (64, 128, 256)
    forms = {name: one for name, one in closed_forms(loaded.geometry, 256).items() if name in (*USUAL, "mrrope-pro")}
    assert [rung.name for rung in climbed.rungs] == ["found", *forms] * 3
    for length in climbed.lengths:
        with LocalEvaluator(loaded, length) as evaluator:
            cut = SampleSet("x", tuple(sample_of(s.source, s.tokens[:length]) for s in DOCUMENTS.samples))
            expected = {name: evaluator.evaluate(one, cut) for name, one in {"found": FOUND, **forms}.items()}
        best = min(forms, key=lambda name: expected[name].loss)
        assert climbed.best_closed_forms[length] == best
        for rung in (rung for rung in climbed.rungs if rung.length == length):
            summary = expected[rung.name].summary
            assert rung.perplexity == pytest.approx(summary.perplexity, rel=1e-6)
            assert rung.standard_error == pytest.approx(summary.standard_error, rel=1e-5)
            assert (rung.documents, rung.tokens) == (3, 3 * (length - 1))
            difference, error = paired_difference(
                expected[rung.name].losses, expected[best].losses, expected[best].tokens
            )
            assert rung.difference == pytest.approx(difference, abs=1e-6)
            assert rung.difference_standard_error == pytest.approx(error, abs=1e-6)
    assert json.loads(json.dumps(climbed.as_json()))["best_closed_forms"]["256"] in forms


def test_what_fails_has_no_figures_and_a_single_document_no_error() -> None:
    place = geometry(pairs=16)
    optimum = [1.0 + 0.2 * i for i in range(16)]
    forms = set(USUAL).intersection(closed_forms(place, 1024))
    documents = SampleSet("held_out", (sample_of("a", np.arange(1024)),))
    failing = SyntheticEvaluator(optimum, diverging=frozenset(range(2, 2 + len(forms))))  # all closed forms at 256
    climbed = ladder(failing, place, {"found": Factors.of(optimum)}, documents, [256, 1024])
    assert list(climbed.best_closed_forms) == [1024]
    first, second, *_ = climbed.rungs
    assert (first.outcome, first.difference, first.standard_error) == ("ok", None, None)
    assert (second.outcome, second.perplexity, second.difference) == (DIVERGED, None, None)
    json.dumps(climbed.as_json(), allow_nan=False)
    assert drawn(draw_ladder, climbed.as_json())


def test_what_a_ladder_cannot_be_of(loaded: LoadedModel) -> None:
    with LocalEvaluator(loaded, 512) as evaluator:
        with pytest.raises(DataError, match="0 has 256 tokens, but 512 are needed"):
            ladder(evaluator, loaded.geometry, {}, DOCUMENTS, [64, 512])
        scored = SampleSet("x", (sample_of("a", DOCUMENTS.samples[0].tokens, (5,)),))
        with pytest.raises(DataError, match="scores only some of its tokens"):
            ladder(evaluator, loaded.geometry, {}, scored, [128])
        with pytest.raises(ValueError, match="yarn cannot be the name"):
            ladder(evaluator, loaded.geometry, {"yarn": FOUND}, DOCUMENTS, [128])


def test_doubling_lengths() -> None:
    assert doubling_lengths(64, 256) == [64, 128, 256]
    assert doubling_lengths(64, 200) == [64, 128, 200]
    assert doubling_lengths(64, 64) == [64]


def drawn(draw: Any, document: dict[str, Any]) -> Axes:
    axes = Figure(layout="constrained").add_subplot()
    draw(axes, document)
    stream = io.StringIO()
    assert axes.figure is not None
    axes.figure.savefig(stream, format="svg")  # type: ignore[union-attr]
    assert "</svg>" in stream.getvalue()
    return axes


def test_the_ladder_is_drawn(climbed: Ladder) -> None:
    axes = drawn(draw_ladder, climbed.as_json())
    handles, labels = axes.get_legend_handles_labels()
    assert {"found", "yarn", "pi", climbed.best_closed_forms[256]} <= set(labels)
    line = dict(zip(labels, handles, strict=True))["found"][0]
    assert line.get_color() == FOUND_COLOUR
    assert list(line.get_xdata()) == [64, 128, 256]
    assert list(line.get_ydata()) == [rung.perplexity for rung in climbed.rungs if rung.name == "found"]
    assert axes.get_xlabel() == "tokens"


def test_the_heat_map_is_drawn() -> None:
    cells = [Cell(n, d, n / 512 * d, 0.1, 4, 2.0) for n in (256, 512) for d in (0.0, 0.5, 1.0)]
    axes = drawn(draw_passkey, as_json(cells))
    assert axes.get_images()[0].get_array().tolist() == [[0.0, 0.0], [0.25, 0.5], [0.5, 1.0]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.texts] == ["0%", "0%", "25%", "50%", "50%", "100%"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["256", "512"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0%", "50%", "100%"]
