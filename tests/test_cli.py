import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from api.cli import main
from factor_search.factors_file import read_factors
from factor_search.measure.evaluator import LocalEvaluator
from tests.conftest import save_checkpoint
from tests.families import tiny_model

COMMAND = [sys.executable, "-W", "error", "-m", "api"]


def specification(checkpoint: Path, texts: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": str(checkpoint),
        "data": {
            "files": [str(texts / "*.txt")],
            "search_documents": 2,
            "validation_documents": 2,
            "held_out_documents": 4,
        },
        "target_length": 128,
        "space": {"initial_tokens": [0, 1, 4]},
        "budget": 24,
    } | changes


def write_spec(folder: Path, document: Any) -> str:
    file = folder / "job.json"
    file.write_text(json.dumps(document))
    return str(file)


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A different architecture: grouped queries, norms on queries and keys, a head_dim of its own."""
    model = tiny_model("qwen3", vocab_size=257, rope_theta=1_000_000.0)
    return save_checkpoint(model, tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="module")
def finished(other_checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(spec file, output folder) of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    spec = write_spec(folder, specification(other_checkpoint, texts))
    assert main(["run", spec, "--out", str(folder / "out")]) == 0
    return Path(spec), folder / "out"


def test_run_leaves_its_four_files_with_the_published_keys(finished: tuple[Path, Path]) -> None:
    _, out = finished
    names = {".factor-search", "factors.json", "report.json", "report.html", "evaluations.jsonl"}
    assert {file.name for file in out.iterdir()} == names
    file, report = read_factors(out / "factors.json"), json.loads((out / "report.json").read_text())
    assert file.perplexity.held_out is not None
    assert {"none", "pi", "ntk", "yarn", "llama3"} <= set(file.perplexity.held_out_baselines)
    assert file.provenance is not None
    assert file.provenance.candidates == 24
    assert report["status"] == "finished"
    assert report["search"]["ended_by"] == "candidates"
    assert report["search"]["candidates"] == 24
    assert len(report["search"]["perplexities"]) == report["search"]["evaluations"] >= 24
    lines = (out / "evaluations.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys)), "nothing is evaluated twice"


def test_the_winner_is_best_on_validation_and_no_worse_than_any_closed_form(finished: tuple[Path, Path]) -> None:
    report = json.loads((finished[1] / "report.json").read_text())
    found, *others = report["results"]
    assert found["name"] == "found"
    assert all(found["validation"] <= row["validation"] for row in others)
    assert [row["held_out"] for row in others] == sorted(row["held_out"] for row in others)
    used = [source for sources in report["documents"].values() for source in sources]
    assert len(used) == len(set(used)) == 8


@pytest.mark.slow
def test_evaluate_reproduces_the_held_out_figure_in_a_new_process(finished: tuple[Path, Path]) -> None:
    spec, out = finished
    expected = read_factors(out / "factors.json").perplexity.held_out
    assert expected is not None
    held_out = json.loads((out / "report.json").read_text())["documents"]["held_out"]
    model = json.loads(spec.read_text())["model"]
    factors = ["--factors", str(out / "factors.json"), "--json"]
    for arguments in (["--spec", str(spec)], ["--model", model, "--length", "128", "--data", *held_out]):
        process = run_process("evaluate", *arguments, *factors)
        assert process.returncode == 0, process.stderr
        figures = json.loads(process.stdout)
        assert list(figures) == ["perplexity", "standard_error", "tokens", "documents", "factors"]
        assert figures["perplexity"] == pytest.approx(expected, rel=1e-7)
        assert (figures["documents"], figures["tokens"]) == (4, 4 * 127)


def test_running_again_computes_nothing_and_changes_nothing(finished: tuple[Path, Path]) -> None:
    spec, out = finished
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main(["run", str(spec), "--out", str(out)]) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_another_search_does_not_overwrite(
    finished: tuple[Path, Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = finished
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    changed = json.loads(spec.read_text()) | {"seed": 1}
    assert main(["run", write_spec(tmp_path, changed), "--out", str(out)]) == 1
    assert "results of another search" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.slow
def test_control_c_leaves_a_valid_result_and_running_again_ends_as_if_undisturbed(
    finished: tuple[Path, Path], other_checkpoint: Path, tmp_path: Path
) -> None:
    spec, undisturbed = finished
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "run", str(spec), "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    ledger = out / "evaluations.jsonl"
    deadline = time.monotonic() + 60
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    partial = json.loads((out / "report.json").read_text())
    assert partial["status"] == "interrupted"
    found = read_factors(out / "factors.json").rescale_factors
    assert found == sorted(found)
    assert "partial result" in (out / "report.html").read_text()
    stored = ledger.read_bytes().count(b"\n")
    assert main(["run", str(spec), "--out", str(out)]) == 0
    lines = ledger.read_text().splitlines()
    assert len(lines) > stored
    assert len({json.loads(line)["key"] for line in lines}) == len(lines), "nothing is evaluated twice"
    assert (out / "factors.json").read_bytes() == (undisturbed / "factors.json").read_bytes()


def test_a_larger_budget_continues_and_an_interrupt_keeps_the_finished_result(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = finished
    larger = write_spec(tmp_path, json.loads(spec.read_text()) | {"budget": 60, "name": "longer"})
    shorter = json.loads((out / "report.json").read_text())["search"]["perplexities"]
    copy = tmp_path / "out"
    shutil.copytree(out, copy)

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalEvaluator, "evaluate", interrupt)
        assert main(["run", larger, "--out", str(copy)]) == 130
    for name in ("factors.json", "report.json", "report.html"):
        assert (copy / name).read_bytes() == (out / name).read_bytes()
    assert main(["run", larger, "--out", str(copy)]) == 0
    longer = json.loads((copy / "report.json").read_text())["search"]
    assert longer["perplexities"][: len(shorter)] == shorter
    assert longer["candidates"] == 60


def test_methods_prints_a_factors_file(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["methods", "--model", str(checkpoint), "--target-length", "128"]
    assert main([*arguments, "--method", "yarn", "--json"]) == 0
    (tmp_path / "yarn.json").write_text(capsys.readouterr().out)
    assert read_factors(tmp_path / "yarn.json").target_length == 128
    assert main(arguments) == 0
    assert "ntk-critical" in capsys.readouterr().out
    evaluate = ["evaluate", "--model", str(checkpoint), "--data", str(texts / "*.txt"), "--length", "128", "--json"]
    assert main([*evaluate, "--method", "yarn"]) == 0
    by_name = capsys.readouterr().out
    assert main([*evaluate, "--factors", str(tmp_path / "yarn.json")]) == 0
    assert capsys.readouterr().out == by_name


def test_inspect(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", str(checkpoint), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["pairs"], described["original_length"], described["rope_theta"]) == (8, 64, 10_000.0)
    assert main(["inspect", "--model", str(checkpoint)]) == 0
    assert "critical dimension" in capsys.readouterr().out


def test_evaluate_with_a_sliding_window_scores_whole_documents(
    checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--model", str(checkpoint), "--data", str(texts / "0*.txt"), "--length", "64", "--json"]
    assert main([*arguments, "--documents", "3", "--stride", "32"]) == 0
    figures = json.loads(capsys.readouterr().out)
    sizes = [len(file.read_bytes()) for file in sorted(texts.glob("0*.txt"))[:3]]
    assert figures["tokens"] == sum(sizes) - 3


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_passkeys(checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(texts / "0*.txt"), "--documents", "2", "--method", "yarn"]
    asked = [*arguments, "--task", "passkey", "--lengths", "320,256", "--depths", "3", "--digits", "2"]
    document = evaluated(capsys, *asked)
    assert list(document) == ["task", "lengths", "depths", "cells", "factors"]
    assert (document["task"], document["lengths"], document["depths"]) == ("passkey", [256, 320], [0.0, 0.5, 1.0])
    assert [(cell["length"], cell["depth"]) for cell in document["cells"]] == [
        (length, depth) for length in (256, 320) for depth in (0.0, 0.5, 1.0)
    ]
    for cell in document["cells"]:
        assert list(cell) == ["length", "depth", "accuracy", "standard_error", "count", "answer_perplexity"]
        assert (cell["accuracy"], cell["count"]) == (0.0, 2), "its weights are random"
    assert document == evaluated(capsys, *asked)
    assert document["factors"] == evaluated(capsys, *arguments, "--length", "320")["factors"]
    assert document != evaluated(capsys, *asked, "--seed", "1")
    assert main(["evaluate", *asked]) == 0
    head, *rows, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["tokens", "depth", "0%", "depth", "50%", "depth", "100%"]
    assert [row.split()[0] for row in rows] == ["256", "320"]
    assert note == "share of passkeys retrieved ± standard error, 2 documents each"


def test_evaluate_tasks_of_ruler(checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(texts / "0*.txt"), "--documents", "2", "--method", "yarn"]
    asked = [*arguments, "--task", "ruler", "--ruler", "single", "--lengths", "320,256", "--depths", "2"]
    document = evaluated(capsys, *asked)
    assert list(document) == ["task", "tasks", "lengths", "scores", "factors"]
    assert (document["task"], document["tasks"], document["lengths"]) == ("ruler", ["single"], [256, 320])
    places = [(score["length"], score["depth"]) for score in document["scores"]]
    assert places == [(length, depth) for length in (256, 320) for depth in (0.0, None, 1.0)]
    assert {(score["accuracy"], score["count"]) for score in document["scores"]} == {(0.0, 2)}, "its weights are random"
    assert main(["evaluate", *asked]) == 0
    printed = capsys.readouterr()
    assert "reminder" not in printed.err, "that texts are longer than the configuration's window"
    head, row, note = printed.out.splitlines()
    assert head.split() == ["256", "320"]
    assert row.split() == ["single", *["0.000", "±", "0.000"] * 2]
    assert note == "share of facts found ± standard error, 2 documents each"


def test_evaluate_needles(checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(texts / "0*.txt"), "--documents", "3", "--length", "256"]
    figures = evaluated(capsys, *arguments, "--task", "needle", "--digits", "4")
    assert list(figures) == ["task", "answer_perplexity", "standard_error", "tokens", "documents", "factors"]
    assert (figures["tokens"], figures["documents"]) == (3 * 5, 3)
    assert main(["evaluate", *arguments, "--task", "needle"]) == 0
    assert re.match(r"perplexity of answer tokens \d+\.\d+ ± .*, 3 documents, 24 tokens$", capsys.readouterr().out)

    objective = {"kind": "needle", "digits": 4, "repeats": 2}
    document = specification(checkpoint, texts, target_length=256, objective=objective, budget=10)
    spec = write_spec(tmp_path, document | {"strategy": {"kind": "evolution"}})
    assert main(["run", spec, "--out", str(tmp_path / "out")]) == 0
    assert "perplexity of answer tokens, and perplexity of the plain text" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())["results"][0]
    factors = ["--spec", spec, "--factors", str(tmp_path / "out" / "factors.json")]
    again = evaluated(capsys, *factors, "--task", "needle")
    assert again["answer_perplexity"] == pytest.approx(found["held_out"], rel=1e-7)
    assert again["documents"] == found["documents"] == 8
    text = evaluated(capsys, *factors)
    assert text["perplexity"] == pytest.approx(found["text_perplexity"], rel=1e-7)


@pytest.mark.parametrize("tokens", [None, 160])
def test_a_spec_with_a_sliding_window(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: int | None
) -> None:
    objective = {"kind": "perplexity", "stride": 64, "tokens": tokens}
    document = specification(checkpoint, texts, objective=objective, budget=12, strategy={"kind": "evolution"})
    spec = write_spec(tmp_path, document)
    assert main(["run", spec, "--out", str(tmp_path / "out")]) == 0
    progress = re.search(r"generation 0: 1 of 12 candidates, best (.*) \(yarn (.*)\)", capsys.readouterr().err)
    assert progress is not None, "the best so far is compared with the best closed form, which is the first candidate"
    assert progress[1] == progress[2]
    found = json.loads((tmp_path / "out" / "report.json").read_text())["results"][0]
    scored = 1 + found["tokens"] // found["documents"]
    assert scored == 160 if tokens else scored > 160
    again = evaluated(capsys, "--spec", spec, "--factors", str(tmp_path / "out" / "factors.json"))
    assert again["perplexity"] == pytest.approx(found["held_out"], rel=1e-7)


def test_export_from_the_command_line(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--factors", str(finished[1] / "factors.json"), "--format", "huggingface"]
    out = tmp_path / "model"
    code = main([*arguments, "--out", str(out), "--drop-initial-tokens", "--json"])
    assert code == 0
    assert str(out / "config.json") in json.loads(capsys.readouterr().out)["files"]
    assert AutoConfig.from_pretrained(out).rope_parameters["rope_type"] == "longrope"


def test_the_books(checkpoint: Path, books: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = [str(book) for book in books]
    assert main(["evaluate", "--model", str(checkpoint), "--data", *data, "--length", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == len(books)


class TestBadInput:
    """One clear line and a non-zero exit, never a traceback, nothing lost."""

    def fails(self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
        capsys.readouterr()
        assert main(arguments) == 1
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if not line.endswith("...")]
        assert len(lines) == 1, output.err
        assert re.search(message, lines[0]), lines[0]
        assert lines[0].startswith("factor-search: error: ")
        assert output.out == ""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"target_length": 64}, "target must be larger"),
            ({"target_length": -5}, "target_length"),
            ({"target_length": True}, "target_length"),
            ({"seed": "7"}, "seed"),
            ({"space": {"upper_bound": 1e18}}, "upper_bound"),
            ({"model": {"id": "x", "original_length": 1}}, "original_length"),
            ({"target_lenght": 9}, "target_lenght: unknown key"),
            ({"space": {"monoton": True}}, "space.monoton: unknown key"),
            ({"model": "no/such/model/folder"}, "no model folder"),
            ({"model": {"id": "x", "dtype": "int8"}}, "model.dtype"),
            ({"model": 3}, "model"),
            ({"data": {}}, "either 'files' or 'dataset'"),
            ({"data": "nothing-*.txt"}, "no file matches nothing"),
            ({"strategy": "genetic"}, "strategy"),
            ({"strategy": {"kind": "evolution", "population": 0}}, "population"),
            ({"budget": {"candidates": None}}, "at least one of"),
            ({"budget": {"no_improvement": 0}}, "budget.no_improvement"),
            ({"warm_start": {"files": ["none.json"]}}, "cannot read none.json: No such file"),
            ({"warm_start": {"jobs": ["0199c3a7d2f44b1e9a0c3d55"]}}, "needs the service"),
            ({"warm_start": {"rescale_factors": [[1.0, 2.0]]}}, "2 rescale factors, but .* 8 rotary pairs"),
            ({"warm_start": {"rescale_factors": [[1.0, float("nan")]]}}, "warm_start.rescale_factors.0.1"),
            ({"objective": {"kind": "perplexity", "stride": 400}}, "beyond the target length"),
            ({"objective": {"kind": "perplexity", "tokens": 400}}, "'tokens' goes with a 'stride'"),
            ({"objective": {"kind": "perplexity", "stride": 8, "tokens": 9}}, "less than one window"),
            ({"objective": "needles"}, "objective"),
            ({"objective": {"kind": "needle", "digits": 40}}, "objective.needle.digits"),
            ({"objective": "needle", "target_length": 100}, "100 tokens are too few .* must be at least 111"),
            ({"target_length": 100_000}, "of the 8 documents needed have 100000 tokens"),
        ],
    )
    def test_specifications(
        self,
        changes: dict[str, Any],
        message: str,
        checkpoint: Path,
        texts: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        spec = write_spec(tmp_path, specification(checkpoint, texts, **changes))
        self.fails(capsys, ["run", spec, "--out", str(tmp_path / "out")], message)

    @pytest.mark.parametrize("content", ["", "[]", "{", '"x"', "null", "9" * 5000])
    def test_files_that_are_not_specifications(
        self, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "job.json").write_text(content)
        self.fails(capsys, ["run", str(tmp_path / "job.json"), "--out", str(tmp_path / "out")], "JSON|not valid")
        self.fails(capsys, ["run", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")], "No such file")

    @pytest.mark.parametrize(
        "broken", ["empty weights", "truncated weights", "missing weights", "broken config", "no rope"]
    )
    def test_checkpoints(
        self, broken: str, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = tmp_path / "model"
        model.mkdir()
        for file in checkpoint.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        weights = model / "model.safetensors"
        if broken == "empty weights":
            weights.write_bytes(b"")
            message = f"{weights} is not a safetensors file, or ends within its header"
        elif broken == "truncated weights":
            weights.write_bytes(weights.read_bytes()[:1000])
            message = f"{weights} is not a safetensors file, or ends within its header"
        elif broken == "missing weights":
            tensors = load_file(weights)
            del tensors["model.layers.1.mlp.up_proj.weight"]
            save_file(tensors, weights, metadata={"format": "pt"})
            message = "lacks 1 weights that the model needs, model.layers.1.mlp.up_proj.weight"
        elif broken == "broken config":
            (model / "config.json").write_text("{")
            message = rf"{model / 'config.json'} is not JSON"
        else:
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
            assert config["model_type"] == "llama"
            message = "no RoPE parameters"
        spec = write_spec(tmp_path, specification(model, texts))
        self.fails(capsys, ["run", spec, "--out", str(tmp_path / "out")], message)
        data = ["--data", str(texts / "*.txt"), "--length", "128"]
        self.fails(capsys, ["evaluate", "--model", str(model), *data], message)

    def test_output_that_cannot_be_written(
        self, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("precious")
        spec = write_spec(tmp_path, specification(checkpoint, texts))
        for out in ("file", "file/below"):
            self.fails(capsys, ["run", spec, "--out", str(tmp_path / out)], "cannot create")
        assert (tmp_path / "file").read_text() == "precious"
        self.fails(capsys, ["run", spec, "--out", str(checkpoint)], "is the model itself")
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "factors.json").write_text("precious")
        self.fails(capsys, ["run", spec, "--out", str(tmp_path / "foreign")], "does not belong to this search")
        assert (tmp_path / "foreign" / "factors.json").read_text() == "precious"

    def test_a_mended_specification_may_use_the_same_folder(
        self, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = ["--out", str(tmp_path / "out")]
        self.fails(capsys, ["run", write_spec(tmp_path, specification(checkpoint, texts, data="no")), *out], "no file")
        assert main(["run", write_spec(tmp_path, specification(checkpoint, texts, budget=10)), *out]) == 0

    def test_a_tokenizer_of_another_model(
        self, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = save_checkpoint(tiny_model("llama", vocab_size=100), tmp_path / "model")
        spec = write_spec(tmp_path, specification(model, texts))
        self.fails(capsys, ["run", spec, "--out", str(tmp_path / "out")], "the model knows only 100")

    def test_devices(self, checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
        evaluate = ["evaluate", "--model", str(checkpoint), "--data", str(texts / "*.txt"), "--length", "128"]
        self.fails(capsys, [*evaluate, "--device", "gpu"], "cannot use device 'gpu'")

    def test_a_spec_and_what_it_says_already(
        self, finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fails(capsys, ["evaluate", "--spec", str(finished[0]), "--length", "64"], "--length cannot be given")

    def test_documents(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, content, message in (
            ("empty.txt", b"", "0 of the 1 documents needed"),
            ("latin.txt", b"caf\xe9" * 99, "not UTF-8"),
        ):
            (tmp_path / name).write_bytes(content)
            data = ["--data", str(tmp_path / name), "--length", "128"]
            self.fails(capsys, ["evaluate", "--model", str(checkpoint), *data], message)

    def test_factors(
        self,
        checkpoint: Path,
        texts: Path,
        finished: tuple[Path, Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        evaluate = ["evaluate", "--model", str(checkpoint), "--data", str(texts / "*.txt"), "--length", "128"]
        foreign = ["--factors", str(finished[1] / "factors.json")]
        self.fails(capsys, [*evaluate, *foreign], "the factors are for rotary_dim 32")
        (tmp_path / "f.json").write_text("{}")
        self.fails(capsys, [*evaluate, "--factors", str(tmp_path / "f.json")], "unknown schema")
        self.fails(capsys, [*evaluate, "--method", "yarm"], "unknown method 'yarm'")
        self.fails(capsys, ["evaluate", "--model", str(checkpoint)], "--data, --length missing")
        self.fails(capsys, [*evaluate, "--stride", "0"], "--stride is 0")
        self.fails(capsys, [*evaluate, "--documents", "99"], "12 of the 99 documents")
        methods = ["methods", "--model", str(checkpoint)]
        self.fails(capsys, [*methods, "--target-length", "10"], "below the model's original length")

    def test_tasks(self, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        evaluate = ["evaluate", "--model", str(checkpoint), "--data", str(texts / "*.txt")]
        at_256, passkey = [*evaluate, "--length", "256"], [*evaluate, "--task", "passkey"]
        self.fails(
            capsys, [*at_256, "--depths", "4"], "--depths goes with --task passkey or ruler, not with perplexity"
        )
        self.fails(capsys, [*at_256, "--task", "needle", "--stride", "8"], "--stride goes with --task perplexity")
        self.fails(capsys, [*at_256, "--task", "needle", "--lengths", "64"], "--lengths goes with --task passkey")
        self.fails(capsys, [*at_256, "--digits", "3"], "--digits goes with --task needle or passkey")
        self.fails(capsys, [*at_256, "--task", "needle", "--digits", "99"], "--digits is 99: .* between 2 and 15")
        self.fails(capsys, [*at_256, "--task", "passkey", "--lengths", "256"], "either --length or --lengths")
        self.fails(capsys, [*passkey, "--lengths", "256", "--depths", "0"], "--depths is 0")
        self.fails(capsys, [*passkey, "--lengths", "64,256"], "64 tokens are too few")
        self.fails(capsys, [*passkey], "--length missing")
        self.fails(capsys, [*at_256, "--chat"], "--chat goes with --task ruler, not with perplexity")
        ruler = [*evaluate, "--task", "ruler", "--lengths", "300"]
        self.fails(capsys, [*ruler, "--chat"], "the tokenizer has no chat template")
        self.fails(capsys, [*ruler, "--ruler", "multi-key"], "300 tokens are too few for the task multi-key")
        self.fails(capsys, [*at_256, "--task", "key-tokens"], "--key-model is missing: name a model")
        at_512 = [*evaluate, "--length", "300", "--task", "key-tokens", "--key-model", str(checkpoint)]
        self.fails(capsys, at_512, "reads 64 tokens, but the texts have 300")
        spec = write_spec(tmp_path, specification(checkpoint, texts, objective="needle", target_length=256))
        self.fails(capsys, ["evaluate", "--spec", spec, "--task", "passkey", "--lengths", "512"], "beyond the target")
        self.fails(capsys, ["evaluate", "--spec", spec, "--task", "needle", "--digits", "3"], "says it already")
        for wrong in (["--task", "passkeys"], ["--lengths", "a,b"], ["--lengths", "1"], ["--ruler", "single,all"]):
            with pytest.raises(SystemExit) as caught:
                main([*passkey, *wrong])
            assert caught.value.code == 2

    def test_unknown_commands_and_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in ([], ["serch"], ["run"], ["evaluate", "--lenght", "3"]):
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            assert caught.value.code == 2


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demo", "run", "evaluate", "inspect", "methods", "export"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "usage: factor-search" in capsys.readouterr().out
