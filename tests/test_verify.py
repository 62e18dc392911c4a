"""Exports that an engine proves, and what a format cannot express."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from api.cli import main
from factor_search.errors import ExportError, ModelLoadError, UnsupportedModelError, VerificationError
from factor_search.export import huggingface
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.registry import ENGINES, REFUSED, engine_named, export, expressible
from factor_search.export.verification.contract import Scorer
from factor_search.export.verification.plain import PlainCheck
from factor_search.export.verification.registry import SCORERS, installed_for, scorer_named
from factor_search.export.verification.verify import Reference, Verdict, compare, scored_length, scored_positions
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.interface import verify_factors
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from tests.families import MIXTURE, tiny_model

TARGET = 128


@pytest.fixture
def file(checkpoint: Path) -> FactorsFile:
    return found(checkpoint)


def found(checkpoint: Path, initial_tokens: int = 0, attention_factor: float = 1.17) -> FactorsFile:
    geometry = read_geometry(AutoConfig.from_pretrained(checkpoint))
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], initial_tokens, attention_factor)
    return factors_file(factors, FactorsModel.of(str(checkpoint), None, geometry), TARGET)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n * n} is the square of {n}. " for n in range(40)))
    return str(path)


def tamper(folder: Path, change: Any) -> None:
    """What a wrong export would do: change the RoPE parameters of a written folder."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "rope_scaling"):
        change(config[name])
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


def test_transformers_proves_the_export(file: FactorsFile, text: str) -> None:
    verification = verify_factors(file, "transformers", text)
    assert verification.verdict == Verdict.EQUAL
    assert verification.max < 1e-5 < 0.01 < verification.unscaled_mean
    assert (verification.tokens, verification.positions) == (80, 32)


def test_an_engine_that_ignores_the_factors_is_found_out(file: FactorsFile, text: str, checkpoint: Path) -> None:
    verification = verify_factors(file, "transformers", text, exported=checkpoint)
    assert verification.verdict == Verdict.DIFFERENT
    assert verification.mean == pytest.approx(verification.unscaled_mean, rel=1e-3)
    with pytest.raises(VerificationError, match=r"do not use .* computes something else"):
        verification.require_equal(checkpoint)


def test_factors_that_change_nothing_prove_nothing(file: FactorsFile, text: str) -> None:
    plain = file.model_copy(update={"rescale_factors": [1.0] * len(file.rescale_factors), "attention_factor": 1.0})
    assert verify_factors(plain, "transformers", text).verdict == Verdict.INCONCLUSIVE


class Rounding(Scorer):
    """An engine that gives other scores, off by a little."""

    name, format, package = "rounding", "huggingface", "rounding"

    def __init__(self, scores: Sequence[float], off: float) -> None:
        self.scores = [score + off * (-1) ** place for place, score in enumerate(scores)]

    def version(self) -> str:
        return "1.0"

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        return self.scores


@pytest.mark.parametrize(
    ("scale", "off", "verdict"),
    [
        (1.0, 0.0, Verdict.EQUAL),
        (1.0, 0.1, Verdict.CLOSE),
        (0.9, 0.05, Verdict.CLOSE),
        (1.0, 0.6, Verdict.DIFFERENT),
        (0.5, 0.0, Verdict.DIFFERENT),
        (0.0, 0.1, Verdict.DIFFERENT),
        (1.0, math.nan, Verdict.DIFFERENT),
    ],
)
def test_verdicts(scale: float, off: float, verdict: Verdict) -> None:
    """An engine between the model without factors (scale 0) and the one with them, and its rounding."""
    reference = Reference(found=[-1.0 + 0.01 * n for n in range(32)], unscaled=[-2.0 - 0.02 * n for n in range(32)])
    between = [b + scale * (a - b) for a, b in zip(reference.found, reference.unscaled, strict=True)]
    found = compare(Rounding(between, off), Path("x"), reference, list(range(40)), list(range(1, 33)))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    "change",
    [
        lambda rope: rope.update(long_factor=[1.0] * len(rope["long_factor"])),
        lambda rope: rope.update(short_factor=[1.0] * len(rope["long_factor"])),
        lambda rope: rope.update(attention_factor=1.0),
        lambda rope: rope.update(rope_type="default"),
        lambda rope: rope.update(rope_theta=5e5),
    ],
)
def test_a_written_folder_that_computes_something_else_is_refused(
    change: Any, file: FactorsFile, tmp_path: Path
) -> None:
    source = Source(file, ModelSpec(id=file.model.id))
    written = export("huggingface", source, tmp_path / "out").loaded
    check = PlainCheck.of(source.model, file)
    check(written)
    tamper(written, change)
    with pytest.raises(ExportError, match=r"computes something else: .* differ by up to"):
        check(written)


def test_nothing_is_left_of_a_folder_that_was_refused(
    file: FactorsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> dict[str, Any]:
        content = right(*given)
        return content | {"rope_scaling": content["rope_scaling"] | {"attention_factor": 1.0}}

    right = huggingface.huggingface_config
    monkeypatch.setattr(huggingface, "huggingface_config", wrong)
    source = Source(file, ModelSpec(id=file.model.id))
    with pytest.raises(ExportError, match="computes something else"):
        export("huggingface", source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export("huggingface", replace(source, check=False), tmp_path / "out")
    monkeypatch.setattr("factor_search.export.model_folder.link_or_copy", lambda *paths: None)
    with pytest.raises(ExportError, match="cannot be loaded"):
        export("huggingface", source, tmp_path / "empty")


def test_a_model_in_memory_is_the_reference_too(file: FactorsFile, tmp_path: Path) -> None:
    loaded = load_model(ModelSpec(id=file.model.id))
    source = Source(file, loaded.spec, check=False)
    written = export("huggingface", source, tmp_path / "out").loaded
    PlainCheck(lambda: loaded, file)(written)
    next(loaded.model.parameters()).data[:] += 0.1
    with pytest.raises(ExportError, match="computes something else"):
        PlainCheck(lambda: loaded, file)(written)


def test_a_model_that_ignores_factors(tmp_path: Path) -> None:
    """The folder would compute the same as the model with factors, and as the one without."""
    model = tiny_model("phimoe", **MIXTURE)
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer(64).save_pretrained(tmp_path / "source")
    source = Source(found(tmp_path / "source"), ModelSpec(id=str(tmp_path / "source")))
    with pytest.raises(UnsupportedModelError, match="ignores rescale factors"):
        export("huggingface", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_twice_is_not_compared(
    file: FactorsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(ModelSpec(id=file.model.id))

    def full(spec: ModelSpec) -> LoadedModel:
        raise ModelLoadError("CUDA out of memory") from torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("factor_search.export.verification.plain.load_model", full)
    PlainCheck(lambda: loaded, file)(tmp_path)
    assert "not enough memory for both" in caplog.text


def test_a_switching_export_is_checked_on_both_sides(checkpoint: Path, tmp_path: Path) -> None:
    file = found(checkpoint)
    pairs = len(file.rescale_factors)
    short = factors_file(Factors.of([1.05] * pairs, 0, 1.17), file.model, file.model.original_length)
    source = Source(file, ModelSpec(id=str(checkpoint)), short)
    written = export("huggingface", source, tmp_path / "out").loaded
    check = PlainCheck.of(source.model, file, short)
    for name, position in (("short_factor", "position 0"), ("long_factor", "position 64")):
        copy = tmp_path / name
        copy.mkdir()
        for item in written.iterdir():
            (copy / item.name).write_bytes(item.read_bytes())
        tamper(copy, lambda rope, name=name: rope.update({name: [2.0] * pairs}))
        with pytest.raises(ExportError, match=position):
            check(copy)


def test_what_a_format_cannot_express_is_refused_with_what_is_nearest(checkpoint: Path, tmp_path: Path) -> None:
    source = Source(found(checkpoint, initial_tokens=4), ModelSpec(id=str(checkpoint)))
    with pytest.raises(ExportError, match=r"keep 4 initial tokens, .*; the nearest is without initial tokens: --near"):
        export("huggingface", source, tmp_path / "out")
    with pytest.raises(ExportError, match=r"the nearest is without initial tokens, \+0.1 nats: --nearest writes that"):
        export("huggingface", source, tmp_path / "out", cost=lambda one, other: "+0.1 nats")
    exported = export("huggingface", source, tmp_path / "out", nearest=True)
    assert exported.source is not None
    assert exported.source.file.initial_tokens == 0
    assert "without initial tokens" in exported.notes[0]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_limits_add_up(checkpoint: Path) -> None:
    class Narrow(Engine):
        name, title, writes, document_name = "narrow", "Narrow", "nothing", None

        def check(self, source: Source) -> None: ...

        def limits(self, source: Source) -> list[Limit]:
            def without(source: Source) -> Source:
                return replace(source, file=source.file.model_copy(update={"initial_tokens": 0}))

            def weaker(source: Source) -> Source:
                return replace(source, file=source.file.model_copy(update={"attention_factor": 1.0}))

            return [Limit("tokens", "without", without), Limit("attention", "1", weaker)]

        def write(self, source: Source, out: Path) -> Exported:
            raise AssertionError

    pairs: list[tuple[Source, Source]] = []

    def cost(one: Source, other: Source) -> str:
        pairs.append((one, other))
        return "much"

    source = Source(found(checkpoint, 4, 1.2), ModelSpec(id=str(checkpoint)))
    adapted, differences = expressible(Narrow(), source, nearest=True, cost=cost)
    assert (adapted.file.initial_tokens, adapted.file.attention_factor) == (0, 1.0)
    assert differences == ["tokens; the nearest is without, much", "attention; the nearest is 1, much"]
    assert [(one.file.initial_tokens, other.file.initial_tokens) for one, other in pairs] == [(4, 0), (0, 0)]


def test_names() -> None:
    with pytest.raises(ExportError, match=r"unknown format 'x': choose one of huggingface"):
        engine_named("x")
    for name, reason in REFUSED.items():
        assert name not in ENGINES
        with pytest.raises(ExportError, match="there is no export for") as refused:
            engine_named(name)
        assert reason in str(refused.value)
    with pytest.raises(VerificationError, match="unknown engine 'x'"):
        scorer_named("x")
    assert {scorer.format for scorer in SCORERS.values()} <= set(ENGINES)
    assert SCORERS["transformers"] in installed_for("huggingface")


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(SCORERS["transformers"]), "version", lambda self: None)
    with pytest.raises(VerificationError, match="transformers is not installed: pip install transformers"):
        scorer_named("transformers")


def test_what_is_scored(file: FactorsFile) -> None:
    source = Source(file, ModelSpec(id="m"))
    assert (scored_length(source), scored_length(source, 100)) == (80, 100)
    with pytest.raises(VerificationError, match="length 64 is not above the original length of 64"):
        scored_length(source, 64)
    positions = scored_positions(80, 64)
    assert (positions[0], positions[-1], len(positions)) == (32, 79, 32)
    assert scored_positions(2, 64) == [1]


def test_commands(file: FactorsFile, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors, kept = tmp_path / "factors.json", tmp_path / "kept.json"
    file.write(factors)
    found(Path(file.model.id), initial_tokens=4).write(kept)
    out = ["--out", str(tmp_path / "out")]
    assert main(["export", "--factors", str(factors), "--format", "huggingface", *out, "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["files"][0] == str(tmp_path / "out" / "config.json")
    assert exported["notes"] == ["transformers>=4.57 loads it"]
    verify = ["verify", "--factors", str(factors), "--engine", "transformers", "--data", text]
    assert main([*verify, "--exported", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "equal"
    assert main([*verify, "--exported", file.model.id]) == 1
    assert "transformers" in (printed := capsys.readouterr().out)
    assert "computes something else" in printed
    for arguments, message in (
        (["verify", "--factors", str(factors), "--engine", "transformers", "--data", "nowhere"], "nowhere"),
        ([*verify, "--length", "10"], "not above the original length"),
        ([*verify, "--exported", str(tmp_path / "nothing")], "transformers cannot load or run"),
        (["export", "--factors", str(factors), "--format", "tgi", *out], "there is no export for tgi"),
        (["export", "--factors", str(factors), "--format", "huggingface", *out], "is not empty"),
        (["export", "--factors", str(kept), "--format", "huggingface", *out], "--data measures what it costs"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err.strip()
        assert message in error
        assert len(error.splitlines()) == 1
    near = ["export", "--factors", str(kept), "--format", "huggingface", "--data", text]
    assert main([*near, *out]) == 1
    assert "nats per token on 1 document:" in capsys.readouterr().err
    assert main([*near, "--nearest", "--out", str(tmp_path / "near")]) == 0
    assert "the nearest is without initial tokens, " in capsys.readouterr().err
