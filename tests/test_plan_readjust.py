"""Searching factors at the original length, relative to the scale of those for long texts."""

import math
from typing import Any

import numpy as np
import pytest

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.methods import closed_forms
from factor_search.plan.kinds.readjust import readjustment_job
from factor_search.report.document import build_factors_file, build_report
from factor_search.report.page import render
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult, JobWatcher, search_and_measure
from factor_search.search.space import SearchSpace
from factor_search.spec import JobSpec, SpaceSpec, parse_spec
from factor_search.text.samples import Samples, SampleSet
from tests.synthetic import ManyDocuments, contains, geometry, many_documents

GEOMETRY = geometry(pairs=16)
LENGTH = GEOMETRY.original_length
SCALE = 16
LONG_FACTORS = [float(SCALE ** (i / 15)) for i in range(16)]


def long_file(attention_factor: float = 1.15) -> FactorsFile:
    factors = Factors.of(LONG_FACTORS, attention_factor=attention_factor)
    return factors_file(factors, FactorsModel.of("M", None, GEOMETRY), SCALE * LENGTH)


def job(**changes: Any) -> JobSpec:
    spec = parse_spec({"model": "M", "data": "x", "target_length": LENGTH, "budget": 120} | changes)
    return readjustment_job(spec, long_file(), "search-2")


def readjusted(power: float, **changes: Any) -> tuple[JobResult, ManyDocuments]:
    """A search whose optimum is a power of the long factors."""
    objective = ManyDocuments([value**power for value in LONG_FACTORS])
    documents = many_documents(4).samples
    parts = (SampleSet(part, documents) for part in ("search", "validation", "held_out"))
    problem = SearchProblem.of(job(**changes), GEOMETRY)
    return search_and_measure(problem, Samples(*parts), objective, JobWatcher()), objective


@pytest.mark.parametrize("strategy", ["auto", "cma", "evolution", "tpe", "nsga2", "random"])
def test_every_strategy_readjusts(strategy: str) -> None:
    result, objective = readjusted(0.6, strategy=strategy)
    long, none = (result.problem.methods[name] for name in ("long", "none"))
    found = result.winning_factors
    assert objective.common(found) < min(objective.common(long), objective.common(none)) / 5
    tried = {factors for factors, _ in objective.computed}
    assert {factors.attention_factor for factors in tried} == {1.15}, "any of them makes a pair with the long ones"
    assert {factors.initial_tokens for factors in tried} == {0}
    space = result.problem.space
    assert all(contains(space, factors) for factors in result.state.candidates)


@pytest.mark.parametrize("power", [0.0, 0.1, 0.35, 1.0])
def test_auto_goes_wherever_the_optimum_is(power: float) -> None:
    result, objective = readjusted(power)
    worst = max(objective.common(result.problem.methods[name]) for name in ("long", "none"))
    assert objective.common(result.winning_factors) < 0.01 * worst


def test_an_attention_factor_of_its_own() -> None:
    objective = ManyDocuments([value**0.6 for value in LONG_FACTORS], attention_factor=1.0)
    documents = many_documents(4).samples
    parts = [SampleSet(part, documents) for part in ("search", "validation", "held_out")]
    spec = readjustment_job(job(), long_file(), "search-2", "search")
    result = search_and_measure(SearchProblem.of(spec, GEOMETRY), Samples(*parts), objective, JobWatcher())
    assert result.winning_factors.attention_factor == pytest.approx(1.0, abs=0.05)
    assert result.problem.methods["none"].attention_factor == 1.0
    assert result.problem.methods["long"].attention_factor == 1.15
    fixed = readjustment_job(job(), long_file(), "search-2", 1.0)
    assert {one.attention_factor for one in SearchProblem.of(fixed, GEOMETRY).methods.values()} == {1.0, 1.15}


def test_what_it_starts_from_and_is_compared_with() -> None:
    result, _ = readjusted(0.5)
    first = list(result.state.candidates)
    powers = [np.array(LONG_FACTORS) ** power for power in (1, 0.75, 0.5, 0.25, 0)]
    for wanted in powers:
        assert any(np.allclose(factors.rescale_factors, wanted, atol=0.006) for factors in first[:20])
    assert result.problem.methods["long"] == long_file().factors
    forms = closed_forms(GEOMETRY, SCALE * LENGTH)
    assert set(result.problem.forms) == {*forms, "long"}
    assert {factors.attention_factor for factors in result.problem.methods.values()} == {1.15}
    assert result.problem.methods["yarn"].rescale_factors == forms["yarn"].rescale_factors
    file = build_factors_file(result)
    assert (file.target_length, file.scale) == (LENGTH, 1.0)
    report = build_report(result)
    assert {"long", "none"} <= {row["is"] for row in report["results"]}
    assert "<svg" in render(report)


@pytest.mark.parametrize(("least", "windows"), [(None, 1), (LENGTH, 1), (3 * LENGTH - 1, 2), (100 * LENGTH, 8)])
def test_it_goes_by_several_windows_of_each_document(least: int | None, windows: int) -> None:
    spec = job(data={"files": ["x"], "least_tokens": least})
    assert (spec.target_length, spec.stride, spec.tokens_scored) == (LENGTH, LENGTH, windows * LENGTH)


def test_a_space_without_a_scale_needs_a_longer_target() -> None:
    with pytest.raises(SpecError, match="the target must be larger"):
        SearchSpace.build(SpaceSpec(), GEOMETRY, LENGTH)
    space = SearchSpace.build(SpaceSpec(scale=4.0, upper_bound=2.0), GEOMETRY, LENGTH)
    assert (space.scale, space.top_level) == (4.0, 700)
    assert SearchSpace.build(SpaceSpec(), GEOMETRY, 4 * LENGTH).scale == 4.0
    for scale in (1.0, 0.5, math.inf):
        with pytest.raises(SpecError, match=r"space\.scale"):
            parse_spec({"model": "M", "data": "x", "target_length": 8, "space": {"scale": scale}})


def test_known_factors_to_compare_with_in_any_job() -> None:
    known = {"source": "a", "rescale_factors": [2.0] * 16, "scale": 2.0, "attention_factor": 1.1, "compare_as": "ours"}
    document = {"model": "M", "data": "x", "target_length": 4 * LENGTH, "warm_start": {"factors": [known]}}
    methods = SearchProblem.of(parse_spec(document), GEOMETRY).methods
    assert methods["ours"].rescale_factors == (4.0,) * 16, "for this scale"
    assert methods["yarn"] == closed_forms(GEOMETRY, 4 * LENGTH)["yarn"]
    document["warm_start"] = {"factors": [known | {"compare_as": "yarn"}]}
    with pytest.raises(SpecError, match="yarn cannot be the name of known factors"):
        SearchProblem.of(parse_spec(document), GEOMETRY)
    assert parse_spec(document).sha256 != parse_spec(document | {"warm_start": {"factors": [known]}}).sha256
