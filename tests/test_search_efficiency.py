import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.efficiency_metrics import figures, in_force, reached_for_good, rival, share_of_way
from bench.efficiency_plot import draw
from bench.efficiency_runs import (
    CONTROL,
    CONTROL_2,
    Measured,
    ModelRuns,
    Plan,
    Point,
    Run,
    Workplace,
    run_plans,
    split_documents,
    thinned,
)
from bench.efficiency_tables import bars, model_table
from bench.fit_closed_form import FORMS, Fitted, drawn
from bench.fresh import RECORD, SCALES, first_looked_at, fresh_judge, names, recipe_of
from bench.racing import highest_rate, replay, stopped_after
from bench.recipes import RECIPES
from bench.shape import shape_of
from bench.yarn_numbers import Kept
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.race import Race
from factor_search.methods import closed_form
from factor_search.methods.ramps import rotation_step
from factor_search.spec import AutoSpec, BudgetSpec, EvolutionSpec
from factor_search.text.samples import Samples, SampleSet
from tests.synthetic import SAMPLES, SyntheticEvaluator, geometry


def trace(*points: tuple[int, float]) -> tuple[Point, ...]:
    return tuple(Point(tokens=tokens, perplexity=perplexity) for tokens, perplexity in points)


def measured(perplexity: float, validation_loss: float = 1.0) -> Measured:
    loss = math.log(perplexity)
    losses = (loss - 0.1, loss + 0.1)
    return Measured(validation_loss=validation_loss, perplexity=perplexity, held_out_losses=losses)


def run(name: str, tokens: int, *points: tuple[int, float], seed: int = 0) -> Run:
    return Run(
        name=name,
        seed=seed,
        settings="",
        ended_by="tokens",
        tokens=tokens,
        candidates=3,
        changes=len(points),
        points=trace(*points),
        final=measured(points[-1][1]),
        reported=measured(points[-1][1]),
    )


RUNS = ModelRuns(
    model="hand-made",
    role="judge",
    full_evaluation=10,
    validation_tokens=10,
    held_out_tokens=(5, 5),
    closed_forms={"none": measured(9.0, 2.2), "yarn": measured(6.0, 1.5), "pi": measured(5.5, 1.6)},
    runs=(
        run(CONTROL, 9_000, (10, 9.0), (4_000, 5.0), (5_000, 5.2), (6_000, 5.1)),
        run("evolution", 8_000, (10, 7.0), (7_000, 4.5)),
        run("auto", 2_000, (10, 6.0), (100, 4.9), (150, 5.3), (180, 4.2), (300, 4.04), (900, 4.1)),
        run("cma", 4_000, (10, 6.0), (3_000, 4.0)),
    ),
)


def test_how_far_closed_forms_come_alone() -> None:
    """ln 9 is the untouched model's, ln 4 what can be attained."""
    assert "closed forms reach without a search: pi 61%, yarn 50%, none 0%." in model_table(RUNS)


def test_a_form_fitted_to_such_models_is_no_baseline() -> None:
    fitted = replace(RUNS, closed_forms=RUNS.closed_forms | {"rotation-step": measured(4.5, 1.2)})
    assert figures(RUNS.runs[2], fitted) == figures(RUNS.runs[2], RUNS)
    assert "Best published closed form on the validation documents: yarn" in model_table(fitted)
    assert "without a search: rotation-step 85%, pi 61%" in model_table(fitted)


def test_what_numbers_of_yarn_keep_of_a_gain() -> None:
    parts = {name: measured(value) for name, value in (("yarn", 6.0), ("approximated", 5.0), ("found", 4.5))}
    kept = Kept(model="x", scale=16.0, tokens=(5, 5), numbers={}, **parts)
    assert kept.gain[0] == pytest.approx(math.log(6 / 4.5))
    assert kept.price[0] == pytest.approx(math.log(5 / 4.5))
    assert kept.share == pytest.approx(1 - math.log(5 / 4.5) / math.log(6 / 4.5))


def test_constants_are_drawn_evenly_within_the_box_and_always_the_same() -> None:
    box = FORMS["step"][1]
    first, again = drawn(box, 64), drawn(box, 64)
    assert np.array_equal(first, again)
    low, high = box.T
    assert np.all((np.array(first) >= low) & (np.array(first) <= high))
    assert np.allclose(np.mean(first, axis=0), (low + high) / 2, atol=0.02 * (high - low))
    near = np.array(drawn(box, 64, 1, high))
    assert np.all(near >= high - (high - low) / 6 - 1e-12)
    assert np.all(near <= high)
    fitted = Fitted(4.0, "yarn", 2.0, [1.5, 1.0, 3.0])
    assert fitted.left.tolist() == [0.5, 0.0, 2.0]


@pytest.mark.parametrize("constants", [(-0.6, 1.0, 0.9, 2.5), (-0.3, 1.6, 0.7, 3.5)])
def test_the_shape_of_factors_is_found_again(constants: tuple[float, ...]) -> None:
    model = geometry(pairs=32)
    shape, distance = shape_of(rotation_step(model, 4096, *constants), model, 4096)
    assert distance < 0.03
    assert np.allclose(shape, constants, atol=0.15)
    _, none = shape_of(closed_form("pi", model, 4096), model, 4096)
    assert none > 0.3, "PI has no such shape"


class TestForGood:
    def test_a_relapse_does_not_count_as_reached(self) -> None:
        assert reached_for_good(trace((10, 5.0), (20, 3.0), (30, 4.5), (40, 3.5), (50, 3.9)), 4.0) == 40

    def test_a_run_that_ends_worse_has_not_reached_it(self) -> None:
        assert reached_for_good(trace((10, 3.0), (20, 4.1)), 4.0) is None
        assert reached_for_good((), 4.0) is None

    def test_an_equal_perplexity_reaches_it(self) -> None:
        assert reached_for_good(trace((10, 5.0), (20, 4.0)), 4.0) == 20


class TestShare:
    def test_the_recommendation_in_force_is_the_last_one_made_by_then(self) -> None:
        points = trace((10, 5.0), (20, 3.0))
        assert [in_force(points, tokens) for tokens in (9, 10, 19, 20, 999)] == [math.inf, 5.0, 5.0, 3.0, 3.0]

    def test_share_of_the_way(self) -> None:
        assert share_of_way(4.1, 6.0, 4.0) == pytest.approx(0.95)
        assert share_of_way(7.0, 6.0, 4.0) == -0.5
        assert share_of_way(math.inf, 6.0, 4.0) == -math.inf
        assert math.isnan(share_of_way(5.0, 4.0, 4.0))


class TestFigures:
    def test_a_run_is_compared_with_every_yardstick(self) -> None:
        auto = figures(RUNS.runs[2], RUNS)
        assert auto.control_reached == auto.evolution_reached == 180
        assert auto.cheaper_than_control == 9_000 / 180
        assert auto.cheaper_than_control_was == 6_000 / 180
        assert auto.cheaper_than_evolution == 8_000 / 180
        assert auto.shares == pytest.approx({20: 0.9, 40: 0.98})  # from 6.0, which validation chose, to 4.0
        assert auto.behind == pytest.approx(math.log(4.1 / 4.0))
        assert auto.attainable_error == pytest.approx(0.1)  # of documents at log 4 - 0.1 and + 0.1
        assert auto.above_closed_form == -0.5

    def test_the_attainable_is_not_behind_itself(self) -> None:
        assert figures(RUNS.runs[3], RUNS).errors_behind == 0

    def test_a_rival_has_the_same_seed_if_there_is_one(self) -> None:
        other = replace(RUNS.runs[0], seed=1)
        both = replace(RUNS, runs=(*RUNS.runs, other))
        assert rival(CONTROL, 1, both) is other
        assert rival(CONTROL, 2, both) is RUNS.runs[0]
        assert rival("tpe", 0, both) is None

    def test_what_is_not_reached_counts_against_the_median(self) -> None:
        never = replace(RUNS.runs[2], points=trace((10, 9.5)), final=measured(9.5), reported=measured(9.5))
        rows = bars([replace(RUNS, runs=(RUNS.runs[0], RUNS.runs[1], never, RUNS.runs[3]))])
        assert rows[0].value.startswith("0 times")
        assert not any(bar.reached for bar in rows[:5])
        assert "not reached" in model_table(replace(RUNS, runs=(RUNS.runs[0], never)))


def test_thinning_keeps_the_marks_and_the_last() -> None:
    tokens = list(range(10, 100_000, 7))
    kept = thinned(tokens, [40, 4_000], most=10)
    assert {tokens[i] for i in kept} >= {tokens[0], 38, 4_000, tokens[-1]}
    assert len(kept) <= 13
    assert thinned([5, 6, 7], [1], most=3) == [0, 1, 2]


def test_documents_are_split_into_disjoint_parts() -> None:
    documents = [np.full(8, n % 9, dtype=np.int64) for n in range(12)]
    samples = split_documents(documents, 4, 2, 3)
    every = [one.sha256 for part in (samples.search, samples.validation, samples.held_out) for one in part.samples]
    assert [len(part.samples) for part in (samples.search, samples.validation, samples.held_out)] == [4, 2, 3]
    assert len(set(every)) == 9
    with pytest.raises(SystemExit):
        split_documents(documents, 4, 2, 4)


def test_from_a_search_to_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimum = np.geomspace(1.01, 9, 16).tolist()
    place = Workplace(
        geometry=geometry(),
        samples=Samples(*(SampleSet(part, SAMPLES.samples) for part in ("search", "validation", "held_out"))),
        target_length=2048,
        evaluator=SyntheticEvaluator(optimum),
    )
    small = BudgetSpec(candidates=40)
    plans = [
        Plan(name=CONTROL, strategy=None, seed=0, budget=small),
        Plan(name=CONTROL_2, strategy=None, seed=0, budget=small),
        Plan(name="evolution", strategy=EvolutionSpec(population=16), seed=0, budget=small),
        Plan(name="auto", strategy=AutoSpec(), seed=0, budget=BudgetSpec(candidates=60)),
    ]
    runs = run_plans("synthetic", "judge", plans, place)
    assert [one.candidates for one in runs.runs] == [40, 40, 40, 60]
    for one in runs.runs:
        assert one.points[-1].perplexity == one.final.perplexity
        assert [point.tokens for point in one.points] == sorted({point.tokens for point in one.points})
    assert len(model_table(runs).splitlines()) == 17
    assert len(bars([runs])) == 8
    draw(runs, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "auto, seed 0: 60 candidates" in capsys.readouterr().out


def test_fresh_judges_are_drawn_from_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {name: recipe_of(name) for seed in range(20) for name in names(seed)}
    assert len(drawn) == 20 * len(SCALES)
    for name, recipe in drawn.items():
        assert (recipe.name, recipe.role) == (name, "judge")
        assert f"{recipe.target // recipe.context}x" == name.rpartition("-")[2]
        assert recipe.target <= 4096
        assert recipe.hidden == recipe.heads * recipe.head_dim
        assert recipe.heads % recipe.key_value_heads == 0
        assert recipe == fresh_judge(name)
    assert len({replace(one, name="", seed=0) for one in drawn.values()}) > 60
    assert recipe_of("docs-64").role == "develop"
    for wrong in ("fresh-1-5x", "fresh-1", "nobody"):
        with pytest.raises(SystemExit, match=f"no model '{wrong}'"):
            recipe_of(wrong)
    record = tmp_path / "seen.json"
    record.write_text('{"docs-128": "2026-11-21"}')
    monkeypatch.setattr("bench.fresh.RECORD", record)
    assert first_looked_at("docs-128") == "first looked at on 2026-11-21"
    assert first_looked_at("fresh-1-16x") == "not looked at before this run"
    assert first_looked_at("fresh-1-16x").startswith("first looked at on 2")


def test_judges_that_were_looked_at_are_in_the_record() -> None:
    seen = json.loads(RECORD.read_text())
    assert {name for name, recipe in RECIPES.items() if recipe.role == "judge"} <= set(seen)


def evaluation(*losses: float) -> Evaluation:
    return Evaluation("", Factors.of([1.0]), "search", OK, losses, (10,) * len(losses), {}, 1.0)


class TestReplay:
    def test_a_candidate_is_stopped_at_the_first_rung_that_it_fails(self) -> None:
        race = Race(documents=4, rival=(1.0,) * 4, margins=((1, 0.5), (2, 0.1)))
        assert stopped_after(evaluation(1.6, 0, 0, 0), race, 4) == 1
        assert stopped_after(evaluation(1.4, 1.0, 0, 0), race, 4) == 2
        assert stopped_after(evaluation(1.1, 1.0, 9, 9), race, 4) == 4
        assert stopped_after(evaluation(9, 9, 9, 9), None, 4) == 4

    def test_wrong_stops_are_counted_against_improvements(self) -> None:
        first = [evaluation(1 + n, 1.01 + n, 1 + n, 1 + n) for n in np.linspace(0, 0.04, 9)]
        late = evaluation(2.0, 0.1, 0.1, 0.1)  # behind at the first rung, the best in the end
        good, bad = evaluation(0.9, 0.9, 0.9, 0.9), evaluation(1.2, 1.2, 1.2, 1.2)
        counts, ends = replay([first, [late, good, bad]], 4, 0.01)
        assert (counts.candidates, counts.stopped, counts.improvements, counts.wrong) == (12, 2, 2, 1)
        assert (counts.tokens, counts.tokens_raced) == (480, 420)
        assert ends.loss == pytest.approx(late.loss)
        assert ends.loss_raced == pytest.approx(0.9)

    def test_upper_limit_of_a_rate(self) -> None:
        assert highest_rate(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
        assert highest_rate(1, 20) == pytest.approx(0.2161, abs=1e-4)  # published table of binomial limits
        assert 0.1 < highest_rate(1_000, 10_000) < 0.11
        assert highest_rate(0, 0) == 1.0
