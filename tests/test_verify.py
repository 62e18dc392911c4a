"""Exports that an engine proves, and what a format cannot express."""

import json
import math
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from api.cli import main
from bench.gguf_writer import Q8_0, write_model
from factor_search.errors import ExportError, ModelLoadError, OutputError, UnsupportedModelError, VerificationError
from factor_search.export import huggingface
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.registry import ENGINES, REFUSED, engine_named, export, expressible
from factor_search.export.verification.contract import Scorer
from factor_search.export.verification.llama_cpp import LlamaCpp
from factor_search.export.verification.plain import PlainCheck
from factor_search.export.verification.registry import SCORERS, installed_for, scorer_named
from factor_search.export.verification.verify import (
    CONFIGURED,
    NO_ATTENTION_FACTOR,
    PLAIN,
    Reference,
    Verdict,
    Verification,
    compare,
    scored_length,
    scored_positions,
)
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

    def __init__(self, scores: Sequence[float], off: float, exact: bool = False) -> None:
        self.scores = [score + off * (-1) ** place for place, score in enumerate(scores)]
        self.is_exact = exact

    def version(self) -> str:
        return "1.0"

    def exact(self, exported: Path) -> bool:
        return self.is_exact

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
    exact = compare(Rounding(between, off, exact=True), Path("x"), reference, list(range(40)), list(range(1, 33)))
    assert exact.verdict == (Verdict.DIFFERENT if verdict == Verdict.CLOSE else verdict)


def judged(
    scores: Sequence[float], reference: Reference, *, off: float = 0.0, exact: bool = False, tokens: int = 40
) -> Verification:
    scorer, positions = Rounding(scores, off, exact), list(range(1, len(scores) + 1))
    return compare(scorer, Path("x"), reference, list(range(tokens)), positions)


FOUND = [-1.0 - 0.01 * n for n in range(32)]
WRONG = {NO_ATTENTION_FACTOR: [score - 0.05 for score in FOUND], CONFIGURED: [score - 0.3 for score in FOUND]}
REFERENCE = Reference(found=FOUND, unscaled=[score - 3.0 for score in FOUND], others=WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_an_engine_in_reduced_precision_with_part_of_the_factors_is_not_close(name: str) -> None:
    """It is far from plain RoPE, but not nearest to the factors."""
    verification = judged(WRONG[name], REFERENCE, off=0.001)
    assert verification.mean < verification.mean_to_unscaled / 8
    assert (verification.verdict, verification.nearest) == (Verdict.DIFFERENT, name)
    assert f"computes something else, namely {name}: different" in verification.table()


def test_what_reduced_precision_hides() -> None:
    """The smallest of the effects decides what can be told."""
    assert judged(FOUND, REFERENCE, off=0.01).verdict == Verdict.CLOSE
    assert judged(FOUND, REFERENCE, off=0.04).verdict == Verdict.INCONCLUSIVE  # the attention factor may be missing
    without = Reference(found=FOUND, unscaled=REFERENCE.unscaled, others={CONFIGURED: WRONG[CONFIGURED]})
    assert judged(FOUND, without, off=0.04).verdict == Verdict.CLOSE
    other_factors = [score - 0.2 for score in FOUND]
    assert judged(other_factors, without).verdict == Verdict.DIFFERENT
    assert judged(other_factors, Reference(found=FOUND, unscaled=FOUND)).verdict == Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("tokens", "off", "verdict"),
    [
        (2048, 4.9e-5, Verdict.EQUAL),
        (2048, 6e-5, Verdict.DIFFERENT),
        (8448, 1.1e-4, Verdict.EQUAL),
        (8448, 3e-4, Verdict.DIFFERENT),
        (131072, 3e-3, Verdict.EQUAL),
    ],
)
def test_float32_explains_more_at_long_positions(tokens: int, off: float, verdict: Verdict) -> None:
    verification = judged(FOUND, REFERENCE, off=off, exact=True, tokens=tokens)
    assert verification.verdict == verdict
    assert judged(WRONG[NO_ATTENTION_FACTOR], REFERENCE, exact=True, tokens=tokens).verdict != Verdict.EQUAL


def test_quantiles_are_interpolated() -> None:
    scores = [*FOUND[:-1], FOUND[-1] - 0.1]
    verification = judged(scores, REFERENCE)
    assert verification.max == pytest.approx(0.1)
    assert verification.p99 == pytest.approx(0.1 * 0.69)  # place 30.69 of 0 to 31


def test_the_model_as_configured_is_found_out(tmp_path: Path, text: str) -> None:
    """A base model with a scaling of its own, of which an engine ignores the export."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny_model("llama", vocab_size=257, rope_parameters=yarn, max_position_embeddings=256)
    model.save_pretrained(tmp_path / "yarn")
    byte_tokenizer(257).save_pretrained(tmp_path / "yarn")
    file = found(tmp_path / "yarn")
    verification = verify_factors(file, "transformers", text, exported=tmp_path / "yarn")
    assert (verification.verdict, verification.nearest) == (Verdict.DIFFERENT, CONFIGURED)
    assert set(verification.mean_to_others) == {PLAIN, CONFIGURED, NO_ATTENTION_FACTOR}
    assert verification.mean_to_others[CONFIGURED] < 1e-5 < 0.001 < verification.mean
    assert verify_factors(file, "transformers", text).verdict == Verdict.EQUAL


def test_a_dropped_attention_factor_is_found_out(file: FactorsFile, text: str, tmp_path: Path) -> None:
    without = file.model_copy(update={"attention_factor": 1.0})
    written = export("huggingface", Source(without, ModelSpec(id=file.model.id)), tmp_path / "out").loaded
    verification = verify_factors(file, "transformers", text, exported=written)
    assert (verification.verdict, verification.nearest) == (Verdict.DIFFERENT, NO_ATTENTION_FACTOR)


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
    def wrong(*given: Any, **more: Any) -> dict[str, Any]:
        content = right(*given, **more)
        return content | {"rope_scaling": content["rope_scaling"] | {"attention_factor": 1.0}}

    right = huggingface.huggingface_config
    monkeypatch.setattr(huggingface, "huggingface_config", wrong)
    source = Source(file, ModelSpec(id=file.model.id))
    with pytest.raises(ExportError, match="computes something else"):
        export("huggingface", source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export("huggingface", replace(source, check=False), tmp_path / "out")
    monkeypatch.setattr("factor_search.export.model_folder.link_or_copy", lambda *paths, **options: None)
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

        def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
            raise AssertionError

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
    assert positions[16:] == list(range(64, 80))  # all that there are
    positions = scored_positions(5120, 4096)
    assert (positions[0], positions[7], positions[8], positions[-1]) == (2048, 4095, 4096, 5119)
    assert positions == sorted(set(positions))
    assert len(positions) == 32
    assert scored_positions(100, 4096)[-1] == 99
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


class Wrong(Rounding):
    """An engine that loads what is exported for MLX, and computes something else."""

    name, format = "wrong", "mlx"

    def __init__(self) -> None: ...

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        return [-1.0] * len(positions)

    def exact(self, exported: Path) -> bool:
        return True


@pytest.fixture
def wrong_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("api.cli.export", "factor_search.interface"):
        monkeypatch.setattr(f"{module}.installed_for", lambda format: [Wrong()])


@pytest.mark.usefixtures("wrong_engine")
def test_an_export_that_an_engine_refutes_loses_its_name(
    file: FactorsFile, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write(tmp_path / "factors.json")
    out = tmp_path / "out"
    command = ["export", "--factors", str(tmp_path / "factors.json"), "--format", "mlx", "--out", str(out)]
    for name in ("out.different", "out.different-2"):
        assert main([*command, "--data", text]) == 1
        printed = capsys.readouterr()
        assert not printed.out
        error = printed.err.strip().splitlines()[-1]
        assert f"do not use {out}: wrong 1.0 computes something else: different; " in error
        assert error.endswith(f"; it is now {tmp_path / name}")
        assert not out.exists()
        assert (tmp_path / name / "config.json").exists()


@pytest.mark.usefixtures("wrong_engine")
@pytest.mark.parametrize("error", [UnsupportedModelError("transformers does not read it"), OutputError("no room")])
def test_an_export_that_cannot_be_verified_is_kept(
    error: Exception,
    file: FactorsFile,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreadable(*given: Any) -> Reference:
        raise error

    monkeypatch.setattr("factor_search.interface.reference", unreadable)
    file.write(tmp_path / "factors.json")
    command = ["export", "--factors", str(tmp_path / "factors.json"), "--format", "mlx", "--data", text]
    assert main([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verified"] == []
    assert f"not verified: {error}\n" in printed.err
    assert (tmp_path / "out" / "config.json").exists()


def test_an_export_that_cannot_be_renamed(file: FactorsFile, text: str, checkpoint: Path, tmp_path: Path) -> None:
    verification = verify_factors(file, "transformers", text, exported=checkpoint)
    with pytest.raises(VerificationError, match=r"do not use .*nowhere: .* cannot be renamed \(No such file"):
        verification.require_equal(tmp_path / "nowhere", rename=True)


def test_costs_that_nobody_asked_for_do_not_fail(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report of a search is beside the factors, but its documents are not here."""
    found(checkpoint, initial_tokens=4).write(tmp_path / "factors.json")
    data = {"files": [str(tmp_path / "gone.txt")]}
    spec = {"model": {"id": str(checkpoint)}, "data": data, "target_length": TARGET}
    (tmp_path / "report.json").write_text(json.dumps({"spec": spec}))
    command = ["export", "--factors", str(tmp_path / "factors.json"), "--format", "huggingface"]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert re.search(r"without initial tokens, not measured: .*gone.txt", capsys.readouterr().err)
    assert main([*command, "--nearest"]) == 0
    assert "without initial tokens, not measured: " in capsys.readouterr().err
    for more, message in ((["--data", str(tmp_path / "gone.txt")], "gone.txt"), (["--documents", "3"], "of --data")):
        assert main([*command, "--nearest", *more]) == 1
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "not measured" not in error
        assert len(error.splitlines()) == 1


def test_a_limit_that_keeps_the_factors_costs_nothing(checkpoint: Path) -> None:
    class Renaming(Engine):
        name, title, writes, document_name = "renaming", "Renaming", "nothing", None

        def check(self, source: Source) -> None: ...

        def limits(self, source: Source) -> list[Limit]:
            return [Limit("its name", "another name", lambda source: replace(source, check=False))]

        def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
            raise AssertionError

        def write(self, source: Source, out: Path) -> Exported:
            raise AssertionError

    def cost(one: Source, other: Source) -> str:
        raise AssertionError("measured")

    source = Source(found(checkpoint), ModelSpec(id=str(checkpoint)))
    _, differences = expressible(Renaming(), source, nearest=True, cost=cost)
    assert differences == ["its name; the nearest is another name"]
    with pytest.raises(ExportError) as refused:
        expressible(Renaming(), source)
    assert str(refused.value).endswith(": --nearest writes that")


def test_scorers_say_whether_they_are_exact(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=257)
    whole = write_model(tmp_path / "whole.gguf", model, "llama")
    packed = write_model(tmp_path / "packed.gguf", model, "llama", quantised=Q8_0)
    widening, as_it_is = LlamaCpp(as_f32=None), LlamaCpp()
    assert (widening.exact(whole), as_it_is.exact(whole)) == (True, True)
    assert (widening.exact(packed), as_it_is.exact(packed)) == (True, False)
    checkpoint = widening.of(ModelSpec(id="owner/name"))  # whose weights are not those of the packed file
    assert (checkpoint.exact(whole), checkpoint.exact(packed)) == (True, False)
    assert widening.of(ModelSpec(id=str(packed))).exact(packed)
    for quantised in ({}, {"quantization": {"bits": 4}}):
        (tmp_path / "config.json").write_text(json.dumps(quantised))
        assert SCORERS["mlx"].exact(tmp_path) == (not quantised)


def test_onnx_is_exact_with_float32_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
    for kind, exact in (("float32", True), ("float16", False), ("uint8", False)):
        weight = onnx.numpy_helper.from_array(np.zeros((2, 2), kind), "weight")
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight])), tmp_path / "model.onnx")
        assert SCORERS["onnx"].exact(tmp_path) == exact


def test_transformers_runs_the_code_of_a_model_only_if_that_is_allowed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own_llama"}))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = Own\n"
    )
    scorer = SCORERS["transformers"]
    with pytest.raises(VerificationError, match="transformers cannot load or run"):
        scorer.of(ModelSpec(id=str(folder))).log_probabilities(folder, [1, 2, 3], [1, 2])
    allowed = scorer.of(ModelSpec(id=str(folder), trust_remote_code=True))
    assert allowed.log_probabilities(folder, [1, 2, 3], [1, 2]) == scorer.log_probabilities(
        checkpoint, [1, 2, 3], [1, 2]
    )


def test_vllm_gets_the_revision_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class LLM:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        def generate(self, prompts: Any, *rest: Any, **options: Any) -> Any:
            tokens = prompts[0]["prompt_token_ids"]
            scored = [{token: SimpleNamespace(logprob=-float(token))} for token in tokens]
            return [SimpleNamespace(prompt_logprobs=scored)]

    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    (tmp_path / "vllm.json").write_text("{}")
    scorer = SCORERS["vllm"].of(ModelSpec(id="owner/name", revision="abc", trust_remote_code=True))
    assert scorer.log_probabilities(tmp_path / "vllm.json", [5, 6, 7], [1, 2]) == [-6.0, -7.0]
    assert (given["model"], given["revision"], given["trust_remote_code"]) == ("owner/name", "abc", True)
