"""Publishing results as a folder and on a hub, without what is private, and measuring the figures again."""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, constants
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

import factor_search as fs
from api.cli import main
from api.publishing.card import license_of
from api.publishing.claims import NAME, Claims, Figure, Tolerance, claims_of, read_claims
from api.publishing.folder import Publication, publish
from api.publishing.privacy import public_method, public_spec
from api.publishing.reproduction import claims_at, model_of, reproduce
from api.publishing.results import Results, read_results
from bench.gguf_writer import write_model
from factor_search.errors import DataError, ExportError, FactorSearchError, FactorsError, OutputError, SpecError
from factor_search.export.mlx import MLX
from factor_search.files.reading import ReadingRules, under
from factor_search.model.loading import load_model
from factor_search.spec import ModelSpec, parse_spec
from factor_search.text.documents import Document
from tests.conftest import COMMIT, save_checkpoint
from tests.families import tiny_model
from tests.hub import TOKEN, Hub, serving

CANARY = "canary7"
"""In everything that is private: names of folders and of the job, and the environment."""
DATA = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 3}
Search = tuple[Path, Path]
VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 1, 0.0, 1e308, 5e-324, -1e308, 10**30, "", "found", "a\nb", [], {}, [[]]]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.text(max_size=8),
)
"""What may stand in a JSON document in place of something else."""


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Each value in a JSON document, by what holds it and its key there."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    return [place for key in keys for place in [(content, key), *_places(content[key])]]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name is private, with a model and documents."""
    folder = tmp_path_factory.mktemp("private") / f"{CANARY}-home"
    save_checkpoint(tiny_model("llama", vocab_size=257), folder / "models" / "small-llama")
    card = "---\nlicense: apache-2.0\ntags:\n- mine\n---\n# Mine\n"
    (folder / "models" / "small-llama" / "README.md").write_text(card)
    (folder / "texts").mkdir()
    for number in range(12):
        text = f"Document {number}. " + f"word{number} and more; " * (20 + number)
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    return folder


def searched(private: Path, name: str, **fields: Any) -> Path:
    model = fields.pop("model", {"id": str(private / "models" / "small-llama"), "device": "cpu"})
    data = DATA | {"files": [str(private / "texts" / "*.txt")]} | fields.pop("data", {})
    out = private / name
    options = {"budget": 12, "space": {"initial_tokens": [0]}, "name": f"{CANARY}-job"} | fields
    fs.search_factors(model, data, 128, out=out, **options)
    return out


@pytest.fixture(scope="module")
def results(private: Path) -> Path:
    return searched(private, "results")


@pytest.fixture(scope="module")
def published(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "folder"
    assert main(["publish", str(results), "--out", str(out)]) == 0
    return out


def asked(results: Path, **changes: Any) -> Publication:
    read = read_results(results)
    return replace(Publication(results=read, model=read.spec.model), **changes)


def measure_again(folder: Path, private: Path, *options: str) -> int:
    model, data = private / "models" / "small-llama", private / "texts" / "*.txt"
    return main(["reproduce", str(folder), "--model", str(model), "--data", str(data), *options])


class TestFolder:
    def test_the_card_is_valid_and_has_the_figures(self, published: Path, results: Path) -> None:
        card = ModelCard.load(published / "README.md")
        data = card.data
        assert isinstance(data, ModelCardData)
        assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "text-generation")
        assert {"rope", "longrope", "factor-search"} <= set(data.tags or ())
        assert data.base_model is None, "nobody said how the model is called on the hub"
        report = json.loads((results / "report.json").read_text())
        for row in report["results"]:
            cells = [row["name"], f"{row['held_out']:.4f} ± {row['standard_error']:.4f}"]
            difference = (
                f"{row['difference']:+.4f} ± {row['difference_standard_error']:.4f}" if row["difference"] else ""
            )
            assert f"| {' | '.join([*cells, difference])} |" in card.text
        short = report["short_context"]
        assert f"Short-context degradation: {short['difference']:+.4f} ± " in card.text
        for name in ("torch", "transformers", "strategy, seed", "tokens evaluated"):
            assert name in card.text

    def test_short_context_degradation_is_that_of_the_first_tokens(self, results: Path, private: Path) -> None:
        report = json.loads((results / "report.json").read_text())
        names = [Path(one["source"]).name for one in report["measured_on"]]
        model = {"id": str(private / "models" / "small-llama"), "device": "cpu"}
        files, factors = [str(private / "texts" / name) for name in names], fs.load_factors(results / "factors.json")
        with_factors, untouched = (fs.evaluate_factors(model, files, 64, one) for one in (factors, None))
        difference = with_factors.summary.loss - untouched.summary.loss  # type: ignore[union-attr]
        assert report["short_context"]["difference"] == pytest.approx(difference, abs=1e-6)
        assert report["short_context"]["length"] == 64

    def test_plain_transformers_loads_the_factors(self, published: Path, private: Path) -> None:
        config = AutoConfig.from_pretrained(published)
        model = AutoModelForCausalLM.from_pretrained(private / "models" / "small-llama", config=config).eval()
        untouched = AutoModelForCausalLM.from_pretrained(private / "models" / "small-llama").eval()
        ids = torch.arange(100)[None] % 250
        with torch.inference_mode():
            theirs = model(ids).logits
            with fs.apply(untouched, fs.load_factors(published / "factors.json")):
                ours = untouched(ids).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)

    def test_exports_and_plots_are_in_it(self, published: Path) -> None:
        overrides = json.loads((published / "exports" / "vllm.json").read_text())
        factors = fs.load_factors(published / "factors.json")
        assert overrides["rope_parameters"]["long_factor"] == factors.rescale_factors
        text = (published / "README.md").read_text()
        assert "vllm serve YOUR_MODEL --hf-overrides" in text
        assert "exports/vllm.json" in text
        for name in ("lengths", "factors", "search"):
            assert f"](plots/{name}.png)" in text
            with Image.open(published / "plots" / f"{name}.png") as picture:
                assert picture.width > 600

    def test_nothing_private_leaves(
        self, private: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        for name in ("HF_TOKEN", "USER", "HOSTNAME", "FACTOR_SEARCH_KEY", "LOGNAME"):
            monkeypatch.setenv(name, f"{CANARY}-{name}")
        warm = private / "warm" / "known.json"
        warm.parent.mkdir(exist_ok=True)
        shutil.copy(results / "factors.json", warm)
        held_out = {"held_out_files": [str(private / "texts" / "0*.txt")], "files": [str(private / "texts" / "1*.txt")]}
        few = {"search_documents": 1, "validation_documents": 1, "held_out_documents": 2}
        known = {"source": f"/{CANARY}/x", "rescale_factors": [1.0] * 8, "compare_as": f"{CANARY}-known"}
        start = {"files": [str(warm)], "factors": [known]}
        source = searched(private, "warm-results", data=held_out | few, warm_start=start, budget=14)
        report = (source / "report.json").read_text()
        assert report.count(CANARY) > 4, "the canaries are in what is published"
        assert "known-1" not in report
        monkeypatch.chdir(private)
        for name, options in {"plain": [], "whole": ["--with-model"]}.items():
            out = tmp_path / name
            assert main(["publish", str(source), "--out", str(out), *options]) == 0
            for file in out.rglob("*"):
                assert CANARY not in file.name
                assert file.is_dir() or CANARY.encode() not in file.read_bytes(), file
            assert "| known-1 |" in (out / "README.md").read_text()
            assert read_claims(out / NAME).spec.warm_start.factors[0].source == "known-1"
            assert measure_again(out, private) == 0
        capsys.readouterr()

    def test_a_path_that_an_exporter_writes_is_noticed(
        self, results: Path, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.publishing.folder.without_origin", lambda file, model: None)
        with pytest.raises(OutputError, match=r"config\.json would name a path of this machine"):
            publish(asked(results), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("texts", "model", "options"),
        [
            ("documents/*.txt", "path/to/the/model", []),
            ("path/to/this/folder/*.txt", "exports/vllm", []),
            ("a/*.txt", "acme/base", ["--repo", "acme/base-long", "--base-model", "acme/base-1b", "--no-hub"]),
        ],
    )
    def test_a_search_with_names_that_a_card_might_have_is_published(
        self,
        texts: str,
        model: str,
        options: list[str],
        private: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Any,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for source, place in (
            (private / "texts", texts.removesuffix("/*.txt")),
            (private / "models/small-llama", model),
        ):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, place)
        data, options_of_search = DATA | {"files": [texts]}, {"budget": 9, "space": {"initial_tokens": [0]}}
        fs.search_factors({"id": model, "device": "cpu"}, data, 128, out=tmp_path / "results", **options_of_search)
        assert main(["publish", "results", "--out", "out", *options]) == 0, capsys.readouterr().err
        card = (tmp_path / "out" / "README.md").read_text()
        words = set(re.findall(r"[^\s`'\"()|\]]*/[^\s`'\"()|]*", card))
        own = [
            *(file.relative_to("out").as_posix() for file in Path("out").rglob("*.*")),
            "https://",
            "</",
            "acme/",
            "me/",
        ]
        assert [word for word in words if not any(one in word for one in own)] == [], "a fixed word could be a path"

    def test_names_of_documents_can_be_hidden(self, results: Path, private: Path, tmp_path: Path) -> None:
        assert main(["publish", str(results), "--out", str(tmp_path / "out"), "--hide-names"]) == 0
        content = (tmp_path / "out" / NAME).read_text()
        assert ".txt" not in content
        with pytest.raises(DataError, match="3 whose names were not published"):
            reproduce(claims_at(str(tmp_path / "out")), ModelSpec(id=str(private / "models" / "small-llama")), None)

    def test_publishing_again_replaces_and_is_the_same(self, results: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        publish(asked(results), out)
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        publish(asked(results), out)
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
        assert list(tmp_path.iterdir()) == [out]

    @pytest.mark.parametrize("name", ["README.md", "mine.txt", "exports/mine.json"])
    def test_what_was_changed_by_hand_is_not_replaced(self, name: str, results: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        publish(asked(results), out)
        (out / name).write_text("mine")
        with pytest.raises(OutputError, match=rf"{name} was (changed|added) since"):
            publish(asked(results), out)
        assert (out / name).read_text() == "mine"

    def test_a_foreign_folder_is_left_alone(self, results: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="holds something else"):
            publish(asked(results), tmp_path)
        with pytest.raises(OutputError, match="holds something else"):
            publish(asked(results), tmp_path / "mine.txt")
        assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_whole_checkpoint(self, results: Path, tmp_path: Path) -> None:
        options = ["--with-model", "--base-model", "owner/small", "--license", "mit", "--repo", "me/long", "--no-hub"]
        assert main(["publish", str(results), "--out", str(tmp_path / "out"), *options]) == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.config.max_position_embeddings == 128
        data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
        assert (data["base_model"], data["base_model_relation"], data["license"]) == ("owner/small", "finetune", "mit")
        text = (tmp_path / "out" / "README.md").read_text()
        assert "AutoModelForCausalLM.from_pretrained('me/long')" in text
        assert "factor-search reproduce me/long" in text
        assert fs.load_factors(tmp_path / "out" / "factors.json").model.id == "owner/small"

    def test_a_whole_gguf_file(self, private: Path, tmp_path: Path) -> None:
        model = private / "models" / "small.gguf"
        write_model(model, tiny_model("llama", vocab_size=257))
        source = searched(private, "gguf-results", model={"id": str(model), "device": "cpu"}, budget=9)
        publish(asked(source, whole=True), tmp_path / "out")
        factors = fs.load_factors(tmp_path / "out" / "factors.json")
        patched = fs.import_factors(tmp_path / "out" / "small-128.gguf")
        assert patched.rescale_factors == pytest.approx(factors.rescale_factors, rel=1e-6)
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert card.data.to_dict()["library_name"] == "gguf"
        assert "llama-cli -m small-128.gguf -c 128" in card.text

    def test_initial_tokens_leave_no_configuration_and_say_why(self, results: Path, tmp_path: Path) -> None:
        shutil.copytree(results, tmp_path / "initial")
        file = fs.load_factors(results / "factors.json").model_copy(update={"initial_tokens": 4})
        fs.save_factors(file, tmp_path / "initial" / "factors.json")
        report = json.loads((results / "report.json").read_text())
        report["factors"]["initial_tokens"] = 4
        (tmp_path / "initial" / "report.json").write_text(json.dumps(report))
        publish(asked(tmp_path / "initial"), tmp_path / "out")
        assert not (tmp_path / "out" / "config.json").exists()
        text = (tmp_path / "out" / "README.md").read_text()
        assert "keep 4 initial tokens, which a Hugging Face configuration cannot express" in text
        assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["library_name"] == "factor-search"
        with pytest.raises(ExportError, match="keep 4 initial tokens"):
            publish(asked(tmp_path / "initial", whole=True), tmp_path / "whole")

    def test_the_card_has_the_command_that_each_engine_gives(
        self, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def command(engine: MLX, model: ModelSpec, target_length: int, out: Path) -> str:
            return f"mlx-loads {model.id} {target_length} {out}"

        monkeypatch.setattr(MLX, "load_command", command, raising=False)
        publish(asked(results, base_model="owner/small"), tmp_path / "out")
        text = (tmp_path / "out" / "README.md").read_text()
        export = "factor-search export --factors factors.json --model owner/small --format mlx --out extended-model"
        assert f"{export}\nmlx-loads owner/small 128 extended-model\n" in text


class TestResults:
    def test_what_is_no_finished_search_is_refused(self, results: Path, tmp_path: Path) -> None:
        shutil.copytree(results, tmp_path / "copy")
        file = tmp_path / "copy" / "report.json"
        report = json.loads(file.read_text())
        for change, message in (
            ({"schema": "factor-search/plan-report@1"}, "not the report of a search"),
            ({"status": "interrupted"}, "partial result"),
            ({"measured_with": None}, "does not say which documents and which model"),
            ({"results": [{}]}, "is damaged"),
            ({"factors": {}}, "are not of the same search"),
        ):
            file.write_text(json.dumps(report | change))
            with pytest.raises(OutputError, match=message):
                read_results(tmp_path / "copy")
        file.unlink()
        with pytest.raises(OutputError, match=r"report\.json"):
            read_results(tmp_path / "copy")

    def test_a_report_of_an_earlier_version_is_written_anew_by_the_same_search(self, private: Path) -> None:
        out = searched(private, "earlier", budget=9)
        file = out / "report.json"
        before = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in before.items() if not key.startswith("measured")}))
        with pytest.raises(OutputError, match="run the same command again"):
            read_results(out)
        searched(private, "earlier", budget=9)
        assert json.loads(file.read_text()) == before

    def test_arguments_that_do_not_fit_are_refused(self, results: Path, tmp_path: Path, capsys: Any) -> None:
        out = ["--out", str(tmp_path / "out")]
        for arguments, message in (
            ([str(results), *out, "--private"], "--private goes with --repo"),
            ([str(results), *out, "--repo", "alone"], "give OWNER/NAME"),
            ([str(results), *out, "--repo", "a/b/c"], "not a name on the hub"),
        ):
            assert main(["publish", *arguments]) == 1
            assert message in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["publish", *out])
        assert "give either RESULTS or --job" in capsys.readouterr().err


class TestReproduce:
    def test_the_figures_are_equal_to_the_last_bit(self, published: Path, private: Path, capsys: Any) -> None:
        capsys.readouterr()
        assert measure_again(published, private, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["reproduced"]
        assert said["different"] == {}
        assert {one["verdict"] for one in said["figures"]} == {"equal"}
        assert {one["what"] for one in said["figures"]} == {"held-out", "minus found", "short-context degradation"}

    @pytest.mark.parametrize("part", [0, 1, -1])
    def test_a_figure_that_is_off_is_found(
        self, part: int, published: Path, private: Path, capsys: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(published, tmp_path / "copy")
        content = json.loads((tmp_path / "copy" / NAME).read_text())
        claimed = content["figures"][part]
        claimed["value"] += 1e-4 * max(1.0, claimed["value"])
        (tmp_path / "copy" / NAME).write_text(json.dumps(content))
        assert measure_again(tmp_path / "copy", private) == 1
        table = capsys.readouterr().out
        assert f"1 of {len(content['figures'])} figures are outside their tolerance" in table

    def test_other_files_of_the_same_model_are_told_and_measured(
        self, published: Path, private: Path, tmp_path: Path, capsys: Any
    ) -> None:
        shutil.copytree(private / "models" / "small-llama", tmp_path / "other")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"unused": 1}))
        data = str(private / "texts" / "*.txt")
        assert main(["reproduce", str(published), "--model", str(tmp_path / "other"), "--data", data]) == 0
        printed = capsys.readouterr()
        assert "model: " in printed.err
        assert "all reproduced" in printed.out

    def test_missing_and_changed_documents_are_named(self, published: Path, private: Path, tmp_path: Path) -> None:
        claims, model = claims_at(str(published)), ModelSpec(id=str(private / "models" / "small-llama"))
        first, second, third = (one.name for one in claims.documents)
        shutil.copy(private / "texts" / first, tmp_path / first)
        (tmp_path / second).write_text("something else " * 30)
        with pytest.raises(DataError, match="give the documents with --data: "):
            reproduce(claims, model, None)
        with pytest.raises(DataError, match=rf"2 of 3 .* other content than measured: {second}; not found: {third}"):
            reproduce(claims, model, [str(tmp_path / "*.txt")])

    def test_documents_are_found_under_any_name(self, published: Path, private: Path, tmp_path: Path) -> None:
        for number, file in enumerate((private / "texts").iterdir()):
            shutil.copy(file, tmp_path / f"renamed-{number}.txt")
        model = ModelSpec(id=str(private / "models" / "small-llama"))
        assert reproduce(claims_at(str(published)), model, [str(tmp_path / "*.txt")]).reproduced

    @pytest.mark.parametrize(
        "fields",
        [
            {"objective": "needle", "data": {"held_out_documents": 2}},
            {"objective": {"kind": "perplexity", "stride": 32, "tokens": 200}},
            {"data": {"cut_long_documents": True, "held_out_documents": 4}},
            {"data": {"least_tokens": 200}},
            {"baselines": ["yarn"]},
        ],
        ids=["needle", "stride", "cut", "least", "baselines"],
    )
    def test_every_kind_of_sample_is_found_again(
        self, fields: dict[str, Any], private: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        if fields.get("objective") == "needle":  # its texts take most of 128 tokens of bytes
            fields = fields | {"data": fields["data"] | {"least_tokens": 200}}
        source = searched(private, f"kind-{request.node.callspec.id}", budget=9, **fields)
        publish(asked(source), tmp_path / "out")
        claims, model = claims_at(str(tmp_path / "out")), ModelSpec(id=str(private / "models" / "small-llama"))
        result = reproduce(claims, model, [str(private / "texts" / "*.txt")])
        assert {one.verdict for one in result.figures} == {"equal"}, result.table()

    def test_documents_of_a_data_set_need_not_be_given(
        self, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = sorted((private / "texts").iterdir())
        rows = [Document(f"owner/set/validation#{n}", file.read_text()) for n, file in enumerate(texts)]
        monkeypatch.setattr("factor_search.text.samples.documents_from_hub", lambda *named: iter(rows))
        model = ModelSpec(id=str(private / "models" / "small-llama"), device="cpu")
        data = DATA | {"dataset": "owner/set"}
        fs.search_factors(model.model_dump(), data, 128, out=tmp_path / "results", budget=9)
        publish(asked(tmp_path / "results"), tmp_path / "out")
        assert (
            "factor-search reproduce THIS_FOLDER --model YOUR_MODEL\n" in (tmp_path / "out" / "README.md").read_text()
        )
        claims = claims_at(str(tmp_path / "out"))
        assert claims.documents[0].name.startswith("validation#")
        assert reproduce(claims, model, None).reproduced

    def test_changed_factors_are_noticed(self, published: Path, tmp_path: Path) -> None:
        shutil.copytree(published, tmp_path / "copy")
        file = fs.load_factors(tmp_path / "copy" / "factors.json")
        changed = [*file.rescale_factors[:-1], file.rescale_factors[-1] + 1]
        fs.save_factors(file.model_copy(update={"rescale_factors": changed}), tmp_path / "copy" / "factors.json")
        with pytest.raises(FactorsError, match=r"not the file that reproduce\.json was written for"):
            claims_at(str(tmp_path / "copy"))

    def test_claims_of_strangers_choose_neither_files_nor_code(self, published: Path, private: Path) -> None:
        claims = claims_at(str(published))

        def with_model(**changes: Any) -> Claims:
            model = claims.spec.model.model_copy(update=changes)
            return claims.model_copy(update={"spec": claims.spec.model_copy(update={"model": model})})

        for name in ("/etc/model", "../model", "small-llama", str(private / "models" / "small-llama")):
            with pytest.raises(SpecError, match="give your copy of it with --model"):
                model_of(with_model(id=name), None)
        with pytest.raises(SpecError, match="is code of the hub"):
            model_of(with_model(id="a/b", attention="kernels-community/x"), None)
        chosen = model_of(with_model(id="a/b", trust_remote_code=True), None)
        assert (chosen.id, chosen.trust_remote_code) == ("a/b", False)

    def test_a_tolerance_is_no_wider_than_rounding_explains(
        self, published: Path, private: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(published, tmp_path / "copy")
        content = json.loads((tmp_path / "copy" / NAME).read_text())
        content["tolerance"] = {"same": 1000.0, "other": 1000.0}
        content["measured_with"] = {"dtype": "bfloat16"}
        content["figures"][0]["value"] *= 1.001
        (tmp_path / "copy" / NAME).write_text(json.dumps(content))
        claims, model = claims_at(str(tmp_path / "copy")), ModelSpec(id=str(private / "models" / "small-llama"))
        result = reproduce(claims, model, [str(private / "texts" / "*.txt")])
        assert not result.reproduced
        assert result.figures[0].tolerance == Tolerance.of("float32", 128).other
        narrow = claims.model_copy(update={"tolerance": Tolerance(same=1e-9, other=1e-9)})
        assert reproduce(narrow, model, [str(private / "texts" / "*.txt")]).figures[0].tolerance == 1e-9

    def test_short_context_degradation_of_another_model_is_said(
        self, published: Path, private: Path, tmp_path: Path, capsys: Any
    ) -> None:
        shutil.copytree(private / "models" / "small-llama", tmp_path / "other")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
        model = ["--model", str(tmp_path / "other"), "--data", str(private / "texts" / "*.txt")]
        assert main(["reproduce", str(published), *model]) == 1
        assert "its original length is 256 tokens" in capsys.readouterr().err.splitlines()[-1]

    def test_claims_with_anything_in_them_are_measured_or_refused_in_one_line(
        self, published: Path, private: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        given_model = ModelSpec(id=str(private / "models" / "small-llama"), device="cpu")
        loaded, original = load_model(given_model), json.loads((published / NAME).read_text())
        folder = tmp_path_factory.mktemp("mutated") / "copy"
        shutil.copytree(published, folder)
        few = {"found", "none"}
        original["candidates"] = {name: factors for name, factors in original["candidates"].items() if name in few}
        original["figures"] = [figure for figure in original["figures"] if figure["of"] in few]
        ended: list[str] = []

        @settings(max_examples=25, deadline=None, database=None, phases=(Phase.generate,))
        @given(st.data())
        def measure(data: st.DataObject) -> None:
            content = copy.deepcopy(original)
            for _ in range(data.draw(st.integers(1, 2))):
                mutate = data.draw(st.sampled_from(["scale", "scale", "scale", "value", "delete", "double"]))
                places = _places(content)
                if mutate == "scale":
                    places = [(one, at) for one, at in places if type(one[at]) in (int, float)]
                holder, key = data.draw(st.sampled_from(places))
                if mutate == "scale":
                    holder[key] *= data.draw(st.sampled_from([-1, 0, 0.5, 2, 1e-6, 1e6, 2**40]))
                elif mutate == "delete":
                    del holder[key]
                elif mutate == "double" and isinstance(holder, list):
                    holder.append(holder[key])
                else:
                    holder[key] = data.draw(VALUES)
            (folder / NAME).write_text(json.dumps(content))
            try:
                with mock.patch("factor_search.model.loading.load_model", return_value=loaded):
                    claims = claims_at(str(folder))
                    result = reproduce(claims, model_of(claims, given_model), [str(private / "texts" / "*.txt")])
                result.table()
                json.dumps(result.as_json())
                ended.append("measured")
            except FactorSearchError as error:
                ended.append(str(error))

        measure()
        assert 1 < ended.count("measured") < len(ended) - 3
        assert all("\n" not in text and 0 < len(text) < 1000 for text in ended)

    def test_damaged_claims_are_refused_in_one_line(self, published: Path, tmp_path: Path) -> None:
        content = json.loads((published / NAME).read_text())
        for change, message in (
            ({"schema": "x"}, "is not a reproduce.json of this version"),
            ({"figures": []}, "figures"),
            ({"documents": [{"name": "a", "sha256": "zz", "tokens": 1}]}, "sha256"),
            ({"candidates": {}}, "no factors of"),
            ({"more": 1}, "unknown key"),
            ({"figures": [{"what": "held-out", "of": "found", "value": 0}]}, "a perplexity is above 0"),
            ({"figures": [{"what": "held-out", "of": "found", "value": -3.5}]}, "a perplexity is above 0"),
            ({"figures": [{"what": "plain text", "of": "found", "value": 2}]}, "only a search for a needle"),
            ({"untouched": None}, "has no candidate that it is measured against"),
        ):
            (tmp_path / NAME).write_text(json.dumps(content | change))
            with pytest.raises(OutputError, match=message) as error:
                read_claims(tmp_path / NAME)
            assert "\n" not in str(error.value)
        (tmp_path / "empty").mkdir()
        with pytest.raises(OutputError, match=r"has no reproduce\.json"):
            claims_at(str(tmp_path / "empty"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process reaches, with an empty cache and a token."""
    with serving({}) as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


class TestHub:
    def test_a_folder_is_uploaded_and_reproduced_from_there(
        self, hub: Hub, results: Path, private: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        command = ["publish", str(results), "--out", str(out), "--repo", "me/long", "--private", "--with-model"]
        assert main(command) == 0
        printed = capsys.readouterr()
        assert f"{hub.url}/me/long" in printed.out
        files = hub.repositories["models/me/long"]
        here = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        assert files == here
        assert hub.private == {"me/long"}
        assert len(hub.stored) >= 2, "weights and pictures by LFS"
        everything = printed.out + printed.err + "".join(hub.asked)
        assert TOKEN not in everything
        assert not [name for name, content in files.items() if TOKEN.encode() in content]
        assert main(command) == 0, "the same again"
        model, data = str(private / "models" / "small-llama"), str(private / "texts" / "*.txt")
        assert main(["reproduce", "me/long", "--model", model, "--data", data]) == 0
        assert "all reproduced" in capsys.readouterr().out

    def test_publishing_again_leaves_nothing_of_the_publication_before(
        self, hub: Hub, results: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        command = ["publish", str(results), "--out", str(out), "--repo", "me/long"]
        assert main(command) == 0
        files = hub.repositories["models/me/long"]
        old = {"config.json", "exports/vllm.json", "README.md", "factors.json", NAME}
        assert old <= set(files)
        files["mine.txt"] = files["exports/mine[1].json"] = b"added by hand"
        claims = json.loads(files[NAME])
        claims["files"] |= {"exports/*": None, "gone.json": None, "../mine.txt": None, "exports/": None}
        files[NAME] = json.dumps(claims).encode()
        again = tmp_path / "again"
        shutil.copytree(results, again)  # whose factors no configuration can express
        file = fs.load_factors(results / "factors.json").model_copy(update={"initial_tokens": 4})
        fs.save_factors(file, again / "factors.json")
        report = json.loads((results / "report.json").read_text())
        report["factors"]["initial_tokens"] = 4
        (again / "report.json").write_text(json.dumps(report))
        assert main(["publish", str(again), "--out", str(out), "--repo", "me/long"]) == 0
        here = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
        assert "config.json" not in here
        assert set(files) == here | {"mine.txt", "exports/mine[1].json"}
        with pytest.raises(ValueError, match="Unrecognized model"):
            AutoConfig.from_pretrained("me/long")

    def test_a_repository_that_does_not_say_what_is_of_it_is_left(
        self, hub: Hub, results: Path, tmp_path: Path, capsys: Any
    ) -> None:
        hub.repositories["models/me/long"] = {NAME: b'{"schema": "factor-search/reproduce@9"}', "config.json": b"{}"}
        assert main(["publish", str(results), "--out", str(tmp_path / "out"), "--repo", "me/long"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "me/long on the hub: " in said
        assert "choose another --repo" in said
        assert hub.repositories["models/me/long"]["config.json"] == b"{}"

    def test_what_cannot_be_uploaded_is_said_and_the_folder_stays(
        self, hub: Hub, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        command = ["publish", str(results), "--out", str(out), "--repo", "me/long"]
        hub.repositories["models/me/other"] = {"model.safetensors": b"x"}
        assert main([*command[:-1], "me/other"]) == 1
        assert "holds something else" in capsys.readouterr().err
        hub.repositories["models/me/long"] = {".gitattributes": b"x"}
        assert main([*command, "--private"]) == 1
        assert "is public already" in capsys.readouterr().err
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "cannot upload to me/long" in said
        assert "hf_wrong" not in said
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        assert main(command) == 1
        assert capsys.readouterr().err.count("\n") == 1
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        assert main(command) == 0
        assert "not uploaded: there is no token" in capsys.readouterr().err
        assert (out / "README.md").exists()

    def test_without_the_hub_nothing_is_asked(
        self, hub: Hub, results: Path, published: Path, tmp_path: Path, capsys: Any
    ) -> None:
        options = ["--repo", "me/long", "--base-model", "o/n", "--no-hub", "--json"]
        assert main(["publish", str(results), "--out", str(tmp_path / "out"), *options]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["uploaded"] is None
        assert "the hub is switched off" in said["not_uploaded_because"]
        assert main(["reproduce", "me/long", "--no-hub"]) == 1
        assert "the hub is switched off" in capsys.readouterr().err
        with under(ReadingRules(hub=False)), pytest.raises(OutputError, match="switched off"):
            claims_at("me/long")
        assert hub.asked == []

    def test_the_license_is_that_of_the_model_on_the_hub(self, hub: Hub) -> None:
        hub.repositories["models/owner/small"] = {"README.md": b"---\nlicense: llama3.1\n---\n# It\n"}
        hub.repositories["models/owner/none"] = {}
        assert license_of("owner/small") == {"license": "llama3.1"}
        assert license_of("owner/none") == {}
        with under(ReadingRules(hub=False)):
            assert license_of("owner/small") == {}

    def test_a_repository_that_is_not_there_is_said(self, hub: Hub, capsys: Any) -> None:
        for name in ("me/nothing", "nonsense//", "."):
            assert main(["reproduce", name]) == 1
            assert capsys.readouterr().err.count("\n") == 1


@given(
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.integers(2, 10**6),
    st.floats(1.01, 1e4),
    st.floats(-2, 2, allow_nan=False),
)
@settings(max_examples=50, deadline=None)
def test_a_figure_is_as_far_off_as_its_loss(dtype: str, length: int, perplexity: float, nats: float) -> None:
    tolerance = Tolerance.of(dtype, length)
    assert 0 < tolerance.same < tolerance.other < 1
    of_perplexity = Figure(what="held-out", of="found", value=perplexity)
    assert of_perplexity.off(perplexity * 2.718281828459045**nats) == pytest.approx(nats, abs=1e-9)
    assert Figure(what="minus found", of="yarn", value=nats).off(nats + 0.5) == pytest.approx(0.5)


def test_a_model_of_the_hub_is_named_with_its_commit(results: Path) -> None:
    spec = parse_spec({"model": "owner/name", "data": "a/b.txt", "target_length": 128})
    identity = {"model": COMMIT, "dtype": "bfloat16", "attention": "sdpa"}
    public = public_spec(spec, identity, "owner/name", hide=False)
    assert (public.model.revision, public.model.dtype, public.data.files) == (COMMIT, "bfloat16", ["b.txt"])
    read: Results = read_results(results)
    on_hub = replace(read, spec=spec)
    assert Publication(results=on_hub, model=spec.model).base == "owner/name"
    assert claims_of(read, public, "0" * 64, hide=False).spec == public
    assert public_method("x", ["yarn", "y", "x"]) == "known-2"
    assert os.sep not in "".join(public.data.files or ())
