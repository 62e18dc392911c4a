"""Searching the numbers of YaRN, or a base, for engines that read no lists of factors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from api.cli import main
from factor_search.errors import ExportError, SpecError
from factor_search.export.configuration import huggingface_config
from factor_search.export.contract import Source
from factor_search.export.registry import engine_named
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file, parse_factors, read_factors
from factor_search.job import run_job
from factor_search.methods import (
    closed_form,
    closed_forms,
    exact_numbers,
    longrope_attention_factor,
    yarn_of_numbers,
)
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import load_model
from factor_search.report.document import build_factors_file, build_report
from factor_search.search.forms import FormSpace
from factor_search.search.loop import search
from factor_search.search.problem import SearchProblem
from factor_search.spec import BudgetSpec, JobSpec, ModelSpec, parse_spec
from tests.synthetic import ManyDocuments, geometry, many_documents

GEOMETRY = geometry(pairs=32, original=4096)
SCALE = 8
BASE: dict[str, Any] = {"name": "x", "model": "m", "data": "d", "target_length": SCALE * 4096}
numbers = st.fixed_dictionaries(
    {
        "factor": st.floats(1.0, 64.0),
        "beta_fast": st.floats(3.0, 200.0),
        "beta_slow": st.floats(0.1, 2.5),
        "attention_factor": st.floats(0.9, 1.6),
        "rope_theta": st.floats(5_000.0, 1e7),
    }
)


def problem_of(form: str, **changes: Any) -> SearchProblem:
    return SearchProblem.of(parse_spec(BASE | {"space": {"form": form}} | changes), GEOMETRY)


@given(numbers)
def test_the_factors_of_numbers_are_those_of_transformers(numbers: dict[str, float]) -> None:
    theta = numbers["rope_theta"]
    config = AutoConfig.for_model("llama", head_dim=64, max_position_embeddings=SCALE * 4096, rope_theta=theta)
    config.rope_parameters = {"rope_type": "yarn", "original_max_position_embeddings": 4096} | numbers
    frequencies, attention = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    found = yarn_of_numbers(GEOMETRY, **numbers)
    plain = 10_000.0 ** (-np.arange(32) / 32)
    assert np.allclose(plain / np.array(found.rescale_factors), frequencies.numpy(), rtol=2e-5)
    assert found.attention_factor == attention


def test_yarn_and_a_raised_base_are_among_the_candidates() -> None:
    space = problem_of("yarn").space.form
    assert isinstance(space, FormSpace)
    for name, known in (("yarn", (1.0, 5.0, 0.0, 1.0, 0.0)), ("ntk", (0.0, 5.0, 0.0, 0.0, 1.0))):
        form = closed_form(name, GEOMETRY, SCALE * 4096)
        found = space.factors(np.clip(known, *space.bounds.T))
        if name == "yarn":
            assert found == Factors.of(form.rescale_factors, 0, round(form.attention_factor, 3))
        again = space.factors(space.nearest(form))
        assert np.allclose(np.log(again.rescale_factors), np.log(form.rescale_factors), atol=0.1)
    plain = problem_of("base").space.form
    assert isinstance(plain, FormSpace)
    ntk = closed_form("ntk", GEOMETRY, SCALE * 4096)
    assert np.allclose(np.log(plain.factors([1.0]).rescale_factors), np.log(ntk.rescale_factors), atol=2e-4)
    assert plain.factors([1.0]).attention_factor == 1.0
    assert plain.numbers(Factors.of([1.0] * 32)) is None


@given(st.tuples(st.floats(0.5, 1.3), st.floats(3.0, 6.0), st.floats(-2.0, 1.0), st.floats(0.0, 1.2)))
def test_the_nearest_of_what_the_form_can_express_is_itself(point: tuple[float, ...]) -> None:
    space = problem_of("yarn").space.form
    assert isinstance(space, FormSpace)
    height, fast, slow, base = point
    wanted = space.factors([height, fast, slow, 1.0, base])
    found = space.factors(space.nearest(wanted))
    distance = np.sqrt(np.mean(np.log(np.divide(found.rescale_factors, wanted.rescale_factors)) ** 2))
    assert distance < 0.1
    assert found.attention_factor == pytest.approx(wanted.attention_factor, abs=2e-3)


@pytest.mark.parametrize(("form", "share"), [("yarn", 0.2), ("base", 2.5)])
def test_a_search_of_numbers_comes_near_and_is_repeated_exactly(form: str, share: float) -> None:
    wanted = yarn_of_numbers(GEOMETRY, 6.0, 9.0, 0.6, 1.1, 30_000.0).rescale_factors

    def run() -> tuple[SearchProblem, Any]:
        problem = problem_of(form)
        evaluator = ManyDocuments(list(wanted))
        return problem, search(problem.strategy(4), evaluator, many_documents(4), BudgetSpec(candidates=120))

    (problem, state), (_, again) = run(), run()
    assert state.evaluations == again.evaluations
    assert state.best is not None
    above = ManyDocuments(list(wanted)).common
    best = min(above(one) for one in problem.methods.values())
    assert above(state.best.factors) <= share * best
    assert all(problem.may_win(factors) for factors in state.candidates)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"form": "yarn", "initial_tokens": [0, 16]}, "form yarn has no initial tokens"),
        ({"form": "base", "attention_factor": 1.1}, "form base has no attention factor"),
        ({"form": "yarn", "monotone": False}, "'monotone' is about lists of factors"),
        ({"form": "yarn", "critical_dimension": "search"}, "'critical_dimension' is about lists of factors"),
        ({"form": "llama3"}, "space.form"),
    ],
)
def test_what_goes_with_no_form_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(BASE | {"space": space})


def test_only_auto_searches_forms_and_what_was_parsed_is_parsed_again() -> None:
    with pytest.raises(SpecError, match="is searched by the strategy auto only, not by cma"):
        parse_spec(BASE | {"space": {"form": "yarn"}, "strategy": "cma"})
    spec = parse_spec(BASE | {"space": {"form": "base"}})
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert spec.sha256 != parse_spec(BASE).sha256
    fixed = problem_of("yarn", space={"form": "yarn", "attention_factor": 1.07})
    assert fixed.space.form is not None
    assert {fixed.space.form.factors(point).attention_factor for point in fixed.space.form.starts()} == {1.07}


@pytest.fixture(scope="module")
def spec(checkpoint: Path, texts: Path) -> Callable[..., JobSpec]:
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2}
    base = {"model": str(checkpoint), "data": data | {"held_out_documents": 2}, "target_length": 256, "budget": 30}
    return lambda **changes: parse_spec(base | changes)


def test_a_job_its_export_and_the_price_of_found_factors(
    spec: Callable[..., JobSpec], checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_job(spec(space={"form": "yarn"}), tmp_path / "run")
    file = build_factors_file(result)
    assert file.form is not None
    assert parse_factors(json.loads(json.dumps(file.as_json()))) == file
    assert result.winner in {name for name in result.validation if name.startswith("found")} | {"yarn", "none"}
    assert build_report(result)["spec"]["space"]["form"] == "yarn"
    file.write(tmp_path / "factors.json")
    exported = ("export", "--format", "huggingface", "--factors")
    assert main([*exported, str(tmp_path / "factors.json"), "--out", str(tmp_path / "model")]) == 0, (
        "it is loaded and compared before it is kept"
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert "long_factor" not in config["rope_parameters"]
    lists = run_job(spec(space={"initial_tokens": [0]}), tmp_path / "lists")
    build_factors_file(lists).write(tmp_path / "lists.json")
    capsys.readouterr()
    job = tmp_path / "job.json"
    job.write_text(lists.problem.spec.model_dump_json())
    for form in ("yarn", "base"):
        out = tmp_path / form
        capsys.readouterr()
        given_factors = ("--factors", str(tmp_path / "lists.json"), "--form", form, "--candidates", "20")
        assert main(["approximate", *given_factors, "--spec", str(job), "--out", str(out), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        (row,) = (row for row in report["results"] if row["is"] == "given factors")
        assert row["difference_standard_error"] is not None
        found = read_factors(out / "factors.json")
        assert found.form is not None
        assert (found.form.kind, found.form.factor == 1.0) == (form, form == "base")
        assert main([*exported, str(out / "factors.json"), "--out", str(tmp_path / f"{form}-model")]) == 0
    assert main(["approximate", "--factors", str(tmp_path / "lists.json"), "--out", str(tmp_path / "no")]) == 1
    assert "give --data with documents, or --spec" in capsys.readouterr().err


def test_a_form_that_is_not_that_of_the_factors_is_not_exported() -> None:
    config = AutoConfig.for_model("llama", head_dim=64, max_position_embeddings=4096)
    values = {"factor": 6.0, "beta_fast": 9.0, "beta_slow": 0.6, "attention_factor": 1.1, "rope_theta": 30_000.0}
    factors, model = yarn_of_numbers(GEOMETRY, **values), FactorsModel.of("m", None, GEOMETRY)
    file = factors_file(factors, model, SCALE * 4096, form={"kind": "yarn", **values})
    content = huggingface_config(file, config, with_form=True)
    assert content["rope_theta"] == content["rope_parameters"]["rope_theta"] == 30_000.0
    assert content["rope_scaling"]["beta_slow"] == 0.6
    wrong = factors_file(factors, model, SCALE * 4096, form={"kind": "yarn", **values, "beta_slow": 0.1})
    with pytest.raises(ExportError, match="is not that of its rescale factors"):
        huggingface_config(wrong, config, with_form=True)


FORMS_OF = {
    "base": {"none", "ntk", "dynamic-ntk", "ntk-critical", "entropy-abf"},
    "yarn": {"yarn", "yarn-cooler", "yarn-rebased", "raised-base", "yarn-narrow"},
}


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
def test_closed_forms_that_are_numbers_say_so(theta: float) -> None:
    config = AutoConfig.for_model("llama", head_dim=128, max_position_embeddings=4096, rope_theta=theta)
    model = read_geometry(config)
    found: dict[str, set[str]] = {"base": set(), "yarn": set()}
    for name, factors in closed_forms(model, 4 * 4096).items():
        if (form := exact_numbers(factors, model, 4 * 4096)) is not None:
            found[form.pop("kind")].add(name)
            computed = yarn_of_numbers(model, **form)
            assert computed.rescale_factors == pytest.approx(factors.rescale_factors, rel=1e-9)
            assert computed.attention_factor == factors.attention_factor
    assert found == FORMS_OF


def test_a_closed_form_is_exported_as_numbers_where_the_model_has_no_scaling(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["methods", "--model", str(checkpoint), "--target-length", "256", "--method", "raised-base"]
    assert main([*command, "--json"]) == 0
    assert "form" not in json.loads(capsys.readouterr().out), "lists work everywhere"
    assert main([*command, "--json", "--numbers"]) == 0
    (tmp_path / "factors.json").write_text(capsys.readouterr().out)
    found = read_factors(tmp_path / "factors.json")
    assert found.form is not None
    assert (found.form.kind, found.form.factor, found.form.attention_factor) == ("yarn", 1.0, found.attention_factor)
    exported = ["export", "--format", "huggingface", "--factors", str(tmp_path / "factors.json")]
    assert main([*exported, "--out", str(tmp_path / "model")]) == 0, "it is loaded and compared before it is kept"
    parameters = json.loads((tmp_path / "model" / "config.json").read_text())["rope_parameters"]
    assert (parameters["rope_type"], parameters["rope_theta"]) == ("yarn", found.form.rope_theta)
    for wrong, message in (
        (command, "give --json too"),
        ([*command[:-1], "pi", "--json"], "pi has no numbers of YaRN"),
    ):
        assert main([*wrong, "--numbers"]) == 1
        assert message in capsys.readouterr().err
    scaled = AutoConfig.for_model("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    own = read_geometry(scaled)
    target = 2 * own.original_length
    assert exact_numbers(closed_form("yarn", own, target), own, target) is None, "it has a scaling"


@pytest.mark.parametrize(
    ("model_type", "fields", "form", "written"),
    [
        ("llama", {}, "yarn", "yarn"),
        ("llama", {}, "ntk", "default"),
        ("phi3", {}, "yarn", "longrope"),
        ("phi3", {}, "ntk", "default"),
        ("gpt_neox", {"partial_rotary_factor": 0.3}, "raised-base", "longrope"),
        ("ministral3", {}, "ntk", "longrope"),
    ],
)
def test_numbers_are_written_where_transformers_computes_the_model_with_them(
    model_type: str, fields: dict[str, Any], form: str, written: str
) -> None:
    """Phi-3 takes every scaling for LongRoPE, YaRN's ramp lacks a pair of odd dimensions, Ministral reads a length."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 64, "max_position_embeddings": 512}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, **fields}
    if model_type == "ministral3":
        rope |= {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 512}
    config = AutoConfig.for_model(model_type, **sizes, rope_parameters=rope)
    own = read_geometry(config)
    assert own.odd == (model_type == "gpt_neox")
    target = 4 * own.original_length
    factors = closed_form(form, own, target)
    numbers_of = exact_numbers(factors, own, target)
    assert numbers_of is not None
    file = factors_file(factors, FactorsModel.of("m", None, own), target, form=numbers_of)
    content = huggingface_config(file, config, with_form=True)
    assert content["rope_parameters"]["rope_type"] == written
    assert ("long_factor" in content["rope_parameters"]) == (written == "longrope")


@pytest.mark.parametrize("name", ["vllm", "sglang", "mlx", "exllamav3", "tensorrt-llm"])
def test_engines_with_numbers_of_their_own_are_given_lists(name: str, checkpoint: Path) -> None:
    """vLLM multiplies YaRN's attention factor by its formula, MLX computes it from two lengths, and so on."""
    own = load_model(ModelSpec(id=str(checkpoint), device="cpu")).geometry
    values = {"factor": 6.0, "beta_fast": 9.0, "beta_slow": 0.6, "attention_factor": 1.1, "rope_theta": 30_000.0}
    if name == "tensorrt-llm":
        values["attention_factor"] = longrope_attention_factor(SCALE, own.original_length)
    factors, model = yarn_of_numbers(own, **values), FactorsModel.of(str(checkpoint), None, own)
    length = SCALE * own.original_length
    with_form = factors_file(factors, model, length, form={"kind": "yarn", **values})
    assert with_form.form is not None
    documents = []
    for file in (with_form, factors_file(factors, model, length)):
        source = Source(file, ModelSpec(id=str(checkpoint)))
        engine = engine_named(name)
        engine.check(source)
        assert not engine.limits(source)
        documents.append(engine.document(source))
    assert documents[0] == documents[1]
    assert "yarn" not in json.dumps(documents[0])
