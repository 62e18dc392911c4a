"""Known factors to start from: read from files, rescaled, refused where they belong to another model."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from api.cli.submit import with_absolute_paths
from factor_search.errors import FactorsError, SpecError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.job import check_possible, run_job
from factor_search.methods import closed_forms, longrope_attention_factor, position_interpolation
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.report.document import build_report
from factor_search.report.results import write_results
from factor_search.search.warm_start import LARGEST_BYTES, embedded, known_from, read_known, rescaled, starting_points
from factor_search.spec import JobSpec, KnownFactors, WarmStartSpec, parse_spec
from tests.synthetic import geometry, is_monotone

GEOMETRY = geometry(pairs=8, original=64)
LAMBDAS = [1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0]


def specification(**changes: Any) -> JobSpec:
    return parse_spec({"model": "m", "data": "d", "target_length": 256} | changes)


def document(target_length: int = 256, of: Geometry = GEOMETRY, **changes: Any) -> dict[str, Any]:
    factors = Factors.of(LAMBDAS, initial_tokens=4, attention_factor=1.125)
    return factors_file(factors, FactorsModel.of("some/model", None, of), target_length).as_json() | changes


def written(folder: Path, content: Any) -> str:
    file = folder / "known.json"
    file.write_text(json.dumps(content))
    return str(file)


def start(file: str, target_length: int = 256, of: Geometry = GEOMETRY) -> Factors:
    (factors,) = starting_points(WarmStartSpec(factors=[read_known(file)]), of, target_length)
    return factors


def test_a_factors_file_for_the_same_length_is_taken_as_it_is(tmp_path: Path) -> None:
    assert start(written(tmp_path, document())) == Factors.of(LAMBDAS, 4, 1.125)


def test_a_stage_before_is_rescaled(tmp_path: Path) -> None:
    factors = start(written(tmp_path, document()), target_length=1024)  # scale 4 to 16
    assert factors.rescale_factors == pytest.approx([1, 1, 2.25, 3.5, 6, 8.5, 11, 16])
    assert factors.initial_tokens == 4
    assert factors.attention_factor == pytest.approx(math.sqrt(1 + (1.125**2 - 1) * 2))


def test_a_list_is_for_the_length_of_the_job(tmp_path: Path) -> None:
    expected = Factors.of(LAMBDAS, 0, longrope_attention_factor(4, 64))
    assert start(written(tmp_path, LAMBDAS)) == expected
    (given_here,) = starting_points(specification(warm_start={"rescale_factors": [LAMBDAS]}).warm_start, GEOMETRY, 256)
    assert given_here == expected


@pytest.mark.parametrize("attention", [{}, {"attention_factor": 1.3}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_published_configuration_gives_what_transformers_makes_of_it(
    key: str, attention: dict[str, float], tmp_path: Path
) -> None:
    scaling = {"type": "longrope", "rope_type": "longrope", "long_factor": LAMBDAS, "short_factor": [1.0] * 8}
    lengths = {"original_max_position_embeddings": 64, "max_position_embeddings": 512}
    shape = {"hidden_size": 32, "num_attention_heads": 2, "rope_theta": 10_000.0}
    scaling = scaling | attention | ({"rope_theta": 10_000.0} if key == "rope_parameters" else {})
    config = AutoConfig.for_model("phi3", **lengths, **shape, rope_scaling=scaling, pad_token_id=0)
    theirs = read_geometry(config).configured_factors(512)
    assert theirs is not None
    published = written(tmp_path, {"model_type": "phi3", "text_config": lengths | shape | {key: scaling}})
    ours = start(published, target_length=512)
    assert ours.rescale_factors == pytest.approx(theirs.rescale_factors, rel=1e-6)
    assert ours.attention_factor == pytest.approx(theirs.attention_factor, rel=1e-6)
    assert start(published, target_length=1024).rescale_factors[-1] == pytest.approx(1 + 3 * 15 / 7)
    bare = start(written(tmp_path, scaling | {"factor": 8}), target_length=1024)
    assert bare.rescale_factors[-1] == pytest.approx(1 + 3 * 15 / 7)


lambdas = st.lists(st.floats(0.5, 100), min_size=2, max_size=8)
scales = st.floats(1.5, 64)


@given(lambdas, scales, scales, st.floats(0.8, 2))
def test_rescaling_there_and_back_changes_nothing(values: list[float], s: float, to: float, attention: float) -> None:
    factors = Factors.of(sorted(values), 2, attention)
    there = rescaled(factors, s, to)
    assert is_monotone(there)
    assert [value > 1 for value in there.rescale_factors] == [value > 1 for value in factors.rescale_factors]
    back = rescaled(there, to, s)
    assert back.rescale_factors == pytest.approx(factors.rescale_factors)
    assert back.attention_factor == pytest.approx(attention)


@given(scales, scales)
def test_position_interpolation_stays_position_interpolation(s: float, to: float) -> None:
    formula = longrope_attention_factor(s, 4096)
    there = rescaled(Factors.of([s] * 4, 0, formula), s, to)
    assert there.rescale_factors == pytest.approx([to] * 4)
    assert there.attention_factor == pytest.approx(longrope_attention_factor(to, 4096))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "known.json is not JSON"),
        ("[1, 2", "known.json is not JSON"),
        ("null", "known.json: the content is not a factors file"),
        ('"text"', "known.json: the content is not a factors file"),
        ("{}", "known.json: the file has no schema"),
        ("[]", "known.json: rescale_factors"),
        ("[1, NaN]", "known.json: rescale_factors.1"),
        ("[1, Infinity]", "known.json: rescale_factors.1"),
        ("[1, 0]", "known.json: rescale_factors.1"),
        ("[1, -2]", "known.json: rescale_factors.1"),
        ('[1, "2"]', "known.json: rescale_factors.1"),
        ("[1, true]", "known.json: rescale_factors.1"),
        ("[[1, 2], [1, 2]]", "known.json: rescale_factors.0"),
        ('{"rope_scaling": {"long_factor": 7}}', "known.json: rescale_factors"),
        ('{"long_factor": [1, 2], "factor": 0}', "known.json: scale"),
        ('{"long_factor": [1, 2], "factor": "8"}', "known.json: scale"),
        ('{"long_factor": [1, 2], "attention_factor": -1}', "known.json: attention_factor"),
        (
            '{"long_factor": [1], "max_position_embeddings": 8, "original_max_position_embeddings": 0}',
            "known.json: original_max_position_embeddings is 0",
        ),
        ('{"a":' * 900 + "1" + "}" * 900, "known.json: the file has no schema"),
        ('{"schema": "factor-search/factors@9"}', "known.json: unknown schema"),
        (json.dumps(document(initial_tokens=5)), "known.json: the content does not match its sha256"),
        (json.dumps(document(rescale_factors=LAMBDAS[1:])), "known.json: the factors are not valid"),
    ],
)
def test_what_holds_no_factors_is_refused_with_its_name(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    file.write_text(content)
    with pytest.raises(FactorsError, match=message):
        embedded(specification(warm_start={"files": [str(file)]}))


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(LARGEST_BYTES + 1)
    for name, message in [
        ("", "is not a file"),
        ("pipe", "is not a file"),
        ("none", "No such file"),
        ("large", "16 MiB"),
    ]:
        with pytest.raises(FactorsError, match=message):
            read_known(str(tmp_path / name))
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(FactorsError, match=r"cannot read|null"):
            read_known(name)


def of_another_model(base: float = 500_000.0, pairs: int = 8, original: int = 64) -> Geometry:
    config = AutoConfig.for_model("llama", head_dim=2 * pairs, max_position_embeddings=original, rope_theta=base)
    return read_geometry(config)


@pytest.mark.parametrize("pairs", [8, 16, 5])
def test_factors_of_another_model_are_carried_by_rotations_and_by_index(pairs: int) -> None:
    theirs = of_another_model(pairs=pairs, original=128)
    lambdas = 8.0 ** np.linspace(0.0, 1.0, pairs) ** 2
    content = factors_file(Factors.of(lambdas.tolist(), 0, 1.1), FactorsModel.of("m", None, theirs), 8 * 128).as_json()
    by_rotations, by_index = starting_points(WarmStartSpec(factors=[known_from(content, "theirs")]), GEOMETRY, 256)
    rotations = 128 / np.array(theirs.wavelengths)
    for wavelength, factor in zip(GEOMETRY.wavelengths, by_rotations.rescale_factors, strict=True):
        at_scale = 1 + (lambdas - 1) * 3 / 7
        expected = np.exp(np.interp(-np.log2(64 / wavelength), -np.log2(rotations), np.log(at_scale)))
        assert factor == pytest.approx(expected)
    ends = by_index.rescale_factors[0], by_index.rescale_factors[-1]
    assert ends == pytest.approx((1.0, 4.0))
    assert (
        by_rotations.attention_factor
        == by_index.attention_factor
        == pytest.approx(math.sqrt(1 + (1.1**2 - 1) * math.log(4) / math.log(8)))
    )


def test_a_published_table_starts_a_search_of_another_model() -> None:
    table = {"model": {"name": "x", "rope_theta": 500_000.0, "rotary_dim": 16, "original_length": 128}}
    known = known_from(table | {"target_length": 1024, "rescale_factors": LAMBDAS}, "table.json")
    assert (known.scale, known.original_length, known.rope_theta) == (8.0, 128, 500_000.0)
    assert len(starting_points(WarmStartSpec(factors=[known]), GEOMETRY, 256)) == 2
    same = table | {"model": {"rope_theta": 10_000.0, "rotary_dim": 16, "original_length": 64}}
    own = known_from(same | {"scale": 4, "rescale_factors": LAMBDAS, "attention_factor": 1.07}, "table.json")
    assert starting_points(WarmStartSpec(factors=[own]), GEOMETRY, 256) == [Factors.of(LAMBDAS, 0, 1.07)]


def test_what_is_known_too_little_of_to_be_carried_is_refused() -> None:
    short = factors_file(Factors.of([1.0] * 8), FactorsModel.of("m", None, of_another_model()), 64).as_json()
    with pytest.raises(FactorsError, match=r"job 7: .*rope_theta 500000, but .* has 10000.*factors for scale 1 cannot"):
        starting_points(WarmStartSpec(factors=[known_from(short, "job 7")]), GEOMETRY, 256)
    missing = r"rescale_factors\[1\]: 7 rescale factors, but .* 8 rotary pairs.*its scale and rope_theta and orig"
    with pytest.raises(FactorsError, match=missing):
        starting_points(WarmStartSpec(rescale_factors=[LAMBDAS, LAMBDAS[1:]]), GEOMETRY, 256)
    published = known_from({"long_factor": LAMBDAS, "rope_theta": 1e6, "factor": 4}, "config.json")
    with pytest.raises(FactorsError, match=r"config\.json: .*rope_theta 1e.*without its original_length"):
        starting_points(WarmStartSpec(factors=[published]), GEOMETRY, 256)


def test_the_content_is_embedded_once_and_is_what_identifies_the_search(tmp_path: Path) -> None:
    file = written(tmp_path, document())
    asked = specification(warm_start={"files": [file], "jobs": ["a"], "rescale_factors": [LAMBDAS]})
    spec = embedded(asked, lambda job_id: document(512))
    assert [known.source for known in spec.warm_start.factors] == [file, "job a"]
    assert (spec.warm_start.files, spec.warm_start.jobs) == ([], [])
    assert embedded(spec) is spec
    stored = parse_spec(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert stored == spec
    assert len(starting_points(stored.warm_start, GEOMETRY, 256)) == 3
    written(tmp_path, document(128))
    assert embedded(asked, lambda job_id: document(512)).sha256 != spec.sha256
    assert spec.sha256 != specification().sha256
    (tmp_path / "elsewhere").mkdir()
    moved = asked.warm_start.model_copy(update={"files": [written(tmp_path / "elsewhere", document())]})
    assert embedded(asked.model_copy(update={"warm_start": moved}), lambda job_id: document(512)).sha256 == spec.sha256


def test_the_same_factors_are_started_from_once() -> None:
    known = KnownFactors(source="a", rescale_factors=LAMBDAS)
    asked = WarmStartSpec(factors=[known, known.model_copy(update={"source": "b"})], rescale_factors=[LAMBDAS])
    assert len(starting_points(asked, GEOMETRY, 256)) == 1


def test_too_many_are_refused() -> None:
    with pytest.raises(SpecError, match="16 warm starts are too many"):
        specification(warm_start={"files": ["a"] * 8, "rescale_factors": [[1.0]] * 8})


class TestJob:
    @staticmethod
    def specification(checkpoint: Path, texts: Path, **changes: Any) -> JobSpec:
        data = {"files": [str(texts / "*.txt")], "held_out_documents": 2}
        data |= {"search_documents": 2, "validation_documents": 2}
        space = {"initial_tokens": [0], "step": 0.25}
        base = {"model": str(checkpoint), "data": data, "target_length": 256, "space": space, "budget": 12}
        return parse_spec(base | changes)

    def test_a_search_starts_there_and_keeps_every_closed_form(
        self, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        file = written(tmp_path, document())
        spec = self.specification(checkpoint, texts, warm_start={"files": [file]})
        check_possible(spec)
        result = run_job(spec, tmp_path / "out")
        first, *rest = [evaluation.factors for evaluation in result.state.evaluations]
        assert first.rescale_factors == tuple(LAMBDAS)
        assert first not in result.problem.methods.values()
        (cold, *_) = (
            evaluation.factors
            for evaluation in run_job(self.specification(checkpoint, texts), tmp_path / "cold").state.evaluations
        )
        assert rest[0] == cold, "the closed forms follow, best guess first"
        scale = position_interpolation(result.problem.geometry, 256).rescale_factors
        assert scale in {factors.rescale_factors for factors in rest}
        assert set(result.problem.forms) == set(closed_forms(result.problem.geometry, 256)), "no baseline is added"
        write_results(result, tmp_path / "out")
        assert build_report(result)["spec"]["warm_start"]["factors"][0]["source"] == file

    def test_what_cannot_be_is_refused_before_anything_is_loaded(
        self, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        for warm_start, message in [
            ({"files": [str(tmp_path / "none.json")]}, "No such file"),
            ({"rescale_factors": [LAMBDAS[1:]]}, "7 rescale factors"),
            ({"jobs": ["0199c3a7d2f44b1e9a0c3d55"]}, "0199c3a7d2f44b1e9a0c3d55, which needs the service"),
        ]:
            spec = self.specification(checkpoint, texts, warm_start=warm_start)
            for refuse in (lambda spec: run_job(spec, tmp_path / "out"), check_possible):
                with pytest.raises((FactorsError, SpecError), match=message):
                    refuse(spec)
        assert not (tmp_path / "out").exists()

    def test_only_the_baselines_are_measured_on_validation_and_held_out_documents(
        self, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        warm_start = {"factors": [{"source": "known", "rescale_factors": LAMBDAS, "compare_as": "known"}]}
        every = run_job(self.specification(checkpoint, texts, warm_start=warm_start), tmp_path / "every")
        spec = self.specification(checkpoint, texts, warm_start=warm_start, baselines=["yarn", "none"])
        some = run_job(spec, tmp_path / "some")
        assert list(some.problem.methods) == ["none", "yarn", "known"]
        assert set(some.held_out) == {"none", "yarn", "known", some.winner}
        assert some.state.evaluations[0].factors == every.state.evaluations[0].factors
        assert len(some.state.candidates) == len(every.state.candidates), "a search starts from all of them"
        assert some.held_out["yarn"].losses == every.held_out["yarn"].losses
        assert set(build_report(some)["closed_forms"]) == {"none", "yarn", "known"}
        assert set(every.held_out) == {*every.methods, every.winner}
        whole = run_job(self.specification(checkpoint, texts, baselines="all"), tmp_path / "whole")
        assert set(whole.methods) == set(closed_forms(whole.problem.geometry, 256))
        with pytest.raises(SpecError, match=r"'as-configured' is not a closed form of this model: choose among none,"):
            check_possible(self.specification(checkpoint, texts, baselines=["as-configured"]))

    def test_a_population_without_room_for_the_closed_forms_is_refused(self, checkpoint: Path, texts: Path) -> None:
        strategy = {"kind": "evolution", "population": 8}
        check_possible(self.specification(checkpoint, texts, strategy=strategy))
        spec = self.specification(checkpoint, texts, strategy=strategy, warm_start={"rescale_factors": [LAMBDAS]})
        with pytest.raises(SpecError, match="make it 9 or more"):
            check_possible(spec)


def test_a_server_on_this_machine_gets_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = specification(warm_start={"files": ["known.json"]}).model_dump(mode="json", exclude_unset=True)
    assert with_absolute_paths(spec)["warm_start"]["files"] == [str(tmp_path / "known.json")]
