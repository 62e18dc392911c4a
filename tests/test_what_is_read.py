"""What is read is what was checked: files named inside of files, links that change, names that are not names."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from transformers import AutoTokenizer

from factor_search.errors import DataError, ModelLoadError, SpecError
from factor_search.export.model_folder import write_model_folder
from factor_search.files.matching import matching_files
from factor_search.files.reading import DESCRIPTORS, ReadingRules, WalkLimit, open_readable, reading_rules, under
from factor_search.model.checkpoint_files import checkpoint_files, opened_checkpoint
from factor_search.model.configuration_values import check_values
from factor_search.model.loading import load_config, load_model, load_tokenizer
from factor_search.plan.kinds import KINDS
from factor_search.plan.spec import PlanSpec, parse_plan
from factor_search.plan.task_names import check_task_names
from factor_search.spec import JobSpec, ModelSpec, parse_spec
from factor_search.spec.named import Names, Text, named_in, undescribed
from factor_search.text.documents import documents_from_files, documents_from_hub
from factor_search.text.samples import documents_of
from tests.hub import COMMIT, Hub, serving
from workers.model_worker import ModelWorker
from workers.policy import AT_SUBMISSION, CHECKS, Policy

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARTS = st.lists(st.sampled_from(["..", "a", "b.arrow", "..", "."]), min_size=1, max_size=4).map("/".join)
ELSEWHERE: st.SearchStrategy[Any] = st.one_of(
    PARTS.filter(lambda name: ".." in name.split("/")),
    PARTS.map(lambda name: f"/{name}"),
    st.sampled_from(["", "a\0b", "hf://datasets/o/d/x", "s3://bucket/x", "file:///etc/passwd", "zip://a::b"]),
    st.sampled_from([None, 3, ["a"], {}]),
)
"""What names no file below a folder."""


@pytest.fixture
def root(tmp_path: Path, checkpoint: Path) -> Path:
    """A root with a model and texts; beside it, what jobs may not read."""
    root = tmp_path / "root"
    shutil.copytree(checkpoint, root / "model")
    (root / "texts").mkdir()
    for number in range(12):
        (root / "texts" / f"{number}.txt").write_text(f"Text {number}. " + f"word{number} " * 60)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret " * 200)
    return root


@pytest.fixture
def policy(root: Path) -> Policy:
    return Policy((root,), allow_hub=False, allow_remote_code=False)


def job(root: Path, **changes: Any) -> JobSpec:
    asked = {"model": str(root / "model"), "data": [str(root / "texts" / "*.txt")], "target_length": 128}
    if isinstance(files := changes.get("data", asked["data"]), list):
        few = {"search_documents": 4, "validation_documents": 2, "held_out_documents": 4}
        changes["data"] = {"files": files} | few
    return parse_spec(asked | changes)


class TestDescribedFields:
    def test_every_field_of_every_specification_says_what_it_names(self) -> None:
        kinds = KINDS.values()
        models: list[type[BaseModel]] = [
            JobSpec,
            PlanSpec,
            *(kind.stage for kind in kinds),
            *(kind.work for kind in kinds),
        ]
        assert {model.__name__: undescribed(model) for model in models if undescribed(model)} == {}

    def test_each_kind_of_thing_has_its_check(self) -> None:
        assert set(CHECKS) == set(Names)

    @pytest.mark.parametrize(
        "type_", [str, str | None, bool, Any, dict[str, Any], list[str], dict[str, int], Path, bytes]
    )
    def test_a_new_field_without_a_description_is_refused(self, type_: Any, policy: Policy) -> None:
        class Space(BaseModel):
            new: type_ = None

        class Inner(BaseModel):
            spaces: list[Space] = [Space()]

        class Job(BaseModel):
            inner: Inner = Inner()
            known: Text = ""

        with pytest.raises(SpecError, match=r"inner\.spaces\.new cannot be checked"):
            policy._check(Job())

    def test_what_is_described_is_found_however_deep(self) -> None:
        class Inner(BaseModel):
            number: int = 3
            files: Annotated[list[str], Names.FILES] = ["a"]

        class Outer(BaseModel):
            one: list[Inner] = [Inner(), Inner(files=["b"])]
            by_name: Annotated[dict[str, Inner], Names.NOTHING] = {"x": Inner(files=["c"])}

        found = [(named.key, named.value) for named in named_in(Outer()) if named.kind is Names.FILES]
        assert found == [("one[0].files", ["a"]), ("one[1].files", ["b"]), ("by_name.x.files", ["c"])]

    def test_access_is_what_the_descriptions_say(self, root: Path) -> None:
        plan = parse_plan(
            {
                "model": str(root / "model"),
                "data": [str(root / "texts" / "*.txt")],
                "training_files": ["more/*.txt"],
                "stages": [{"kind": "search", "target_length": 128}],
                "webhooks": [{"url": "https://hooks.example/"}],
            }
        )
        kinds = {named.key: named.kind for named in named_in(plan) if named.kind is not Names.NOTHING}
        assert kinds == {
            "model.id": Names.MODEL,
            "model.attention": Names.KERNEL,
            "model.trust_remote_code": Names.CODE,
            "data.files": Names.DOCUMENTS,
            "training_files": Names.DOCUMENTS,
            "trackers": Names.TRACKERS,
            "webhooks[0].url": Names.WEBHOOK,
        }


class TestSavedDataSets:
    @pytest.fixture
    def saved(self, root: Path) -> Path:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_dict({"text": [f"row {number} " * 99 for number in range(4)], "more": [1] * 4})
        table.save_to_disk(root / "saved", num_shards=2)
        datasets.DatasetDict({"validation": table}).save_to_disk(root / "splits")
        datasets.Dataset.from_dict({"text": ["secret " * 99] * 4}).save_to_disk(root.parent / "outside" / "saved")
        return root / "saved"

    def test_rows_are_those_of_the_library(self, saved: Path) -> None:
        import datasets

        expected = datasets.load_from_disk(str(saved))["text"][:]
        for folder in ("saved", "splits"):
            assert [one.text for one in documents_from_files([str(saved.parent / folder)])] == expected

    @given(name=ELSEWHERE)
    @FEW
    def test_files_elsewhere_are_refused(self, name: Any, saved: Path, policy: Policy) -> None:
        (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="not a file below its folder"):
            list(documents_from_files([str(saved)]))
        with pytest.raises(SpecError, match="not a file below its folder"):
            policy.check(job(saved.parent, data=[str(saved)]))

    @given(name=ELSEWHERE.filter(lambda name: isinstance(name, str)))
    @FEW
    def test_splits_elsewhere_are_refused(self, name: str, saved: Path) -> None:
        splits = saved.parent / "splits"
        (splits / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
        with pytest.raises(DataError, match="not a file below its folder"):
            list(documents_from_files([str(splits)], split=name))

    def test_a_file_with_rows_that_is_a_link_out_is_refused(self, saved: Path, policy: Policy) -> None:
        shard = next(saved.glob("*.arrow"))
        shard.unlink()
        shard.symlink_to(next((saved.parents[1] / "outside" / "saved").glob("*.arrow")))
        with pytest.raises(SpecError, match="links out"):
            policy.check(job(saved.parent, data=[str(saved)]))
        with under(policy.reading_rules()), pytest.raises(SpecError, match="links out"):
            list(documents_from_files([str(saved)]))

    @pytest.mark.parametrize("content", ["[]", "{}", '{"_data_files": 3}', '{"_data_files": [3]}', "{", "null"])
    def test_broken_ones_are_one_line(self, content: str, saved: Path) -> None:
        (saved / "state.json").write_text(content)
        with pytest.raises(DataError, match=r"state\.json") as raised:
            list(documents_from_files([str(saved)]))
        assert "\n" not in str(raised.value)

    def test_rows_that_are_not_arrow_are_one_line(self, saved: Path) -> None:
        next(saved.glob("*.arrow")).write_bytes(b"text")
        with pytest.raises(DataError, match="as rows of a saved data set"):
            list(documents_from_files([str(saved)]))
        with pytest.raises(DataError, match="no column 'body', only text, more"):
            list(documents_from_files([str(saved.parent / "splits")], column="body"))


class TestNamesOfDataSets:
    @pytest.mark.parametrize(
        "dataset",
        [
            *("text", "parquet", "json", "csv", "webdataset", "imagefolder", "arrow"),
            *("hf://datasets/o/d", "s3://bucket/x", "http://host/x", "file:///etc", "zip://a.csv::hf://datasets/o/d"),
            *("buckets/o", "../o", "o/..", "a/b/c", "o--d", "", " ", "o/d@main"),
        ],
    )
    def test_only_names_of_the_hub_are_data_sets(self, dataset: str, root: Path) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(DataError, match=r"data\.dataset"):
            list(documents_from_hub(dataset, None, "train", "text"))
        hub = Policy((root,), allow_hub=True, allow_remote_code=False)
        with pytest.raises((SpecError), match=r"data\.dataset|give either"):
            hub.check(job(root, data={"dataset": dataset}))

    def test_a_folder_is_not_one(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its README.md may name files anywhere, and the loader reads them."""
        folder = root / "owner" / "name"
        folder.mkdir(parents=True)
        secret = root.parent / "outside" / "secret.txt"
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {secret}\n---\n")
        monkeypatch.chdir(root)
        hub = Policy((root,), allow_hub=True, allow_remote_code=False)
        for dataset in (str(folder), "owner/name"):
            with pytest.raises(DataError, match="is a folder or file here"):
                list(documents_from_hub(dataset, None, "train", "text"))
            with pytest.raises(SpecError, match="is a folder or file here"):
                hub.check(job(root, data={"dataset": dataset}))

    @pytest.mark.parametrize(
        "address", ["hf://datasets/o/d/*.parquet", "zip://*.txt::a.zip", "http://host/a.txt", "a::b"]
    )
    def test_addresses_are_not_files(self, address: str, root: Path, policy: Policy) -> None:
        with pytest.raises(DataError, match="is an address"):
            matching_files(address)
        changes: list[dict[str, Any]] = [
            {"data": [address]},
            {"data": {"files": [str(root / "texts" / "1.txt")], "held_out_files": [address]}},
            {"warm_start": {"files": [address]}},
            {"model": address},
        ]
        for change in changes:
            with pytest.raises(SpecError, match="is an address"):
                policy.check(job(root, **change))


class TestCheckpoints:
    @given(name=ELSEWHERE)
    @FEW
    def test_shards_elsewhere_are_refused(self, name: Any, root: Path, policy: Policy) -> None:
        (root / "model" / "model.safetensors").unlink(missing_ok=True)
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            (root / "model" / index).write_text(json.dumps({"metadata": {}, "weight_map": {"w": name}}))
            with pytest.raises(ModelLoadError, match=r"not a file below its folder|not the name of a file"):
                load_config(ModelSpec(id=str(root / "model")))
            with pytest.raises(SpecError, match=r"not a file below its folder|not the name of a file"):
                policy.check(job(root))
            (root / "model" / index).unlink()

    def test_shards_in_folders_of_the_checkpoint_are_read(self, root: Path, policy: Policy) -> None:
        model = root / "model"
        weights = sharded(model, "parts/one.safetensors")
        policy.check(job(root))
        assert set(checkpoint_files(ModelSpec(id=str(model)))) >= {"parts/one.safetensors"}
        with under(policy.reading_rules()):
            loaded = load_model(ModelSpec(id=str(model)))
        assert {name for name, _ in loaded.model.named_parameters()} >= weights
        write_model_folder(json.loads((model / "config.json").read_text()), model, root.parent / "exported", 128)
        assert load_model(ModelSpec(id=str(root.parent / "exported"))).model.num_parameters()
        (model / "parts" / "one.safetensors").rename(root.parent / "outside" / "one.safetensors")
        (model / "parts" / "one.safetensors").symlink_to(root.parent / "outside" / "one.safetensors")
        with pytest.raises(SpecError, match="links out"):
            policy.check(job(root))

    def test_libraries_see_nothing_but_the_files_of_the_checkpoint(self, root: Path) -> None:
        model = root / "model"
        (model / "nested").mkdir()
        (model / "nested" / "more.json").write_text("{}")
        with opened_checkpoint(ModelSpec(id=str(model))) as place:
            assert place != str(model)
            seen = {str(file.relative_to(place)) for file in Path(place).rglob("*")}
            assert seen == {file.name for file in model.iterdir() if file.is_file()}
            assert Path(place, "config.json").read_bytes() == (model / "config.json").read_bytes()
        assert not Path(place).exists()

    @pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system has no links to open files")
    def test_a_link_that_changes_while_a_model_is_loaded_changes_nothing(self, root: Path, policy: Policy) -> None:
        model = root / "model"
        (model / "config.json").rename(model / "real.json")
        (model / "config.json").symlink_to(model / "real.json")
        with under(policy.reading_rules()), opened_checkpoint(ModelSpec(id=str(model))) as place:
            (model / "config.json").unlink()
            (model / "config.json").symlink_to(root.parent / "outside" / "secret.txt")
            assert "architectures" in json.loads(Path(place, "config.json").read_text())
        with under(policy.reading_rules()), pytest.raises(SpecError, match="links out"):
            load_config(ModelSpec(id=str(model)))

    def test_files_that_a_tokenizer_names_are_not_read(self, root: Path) -> None:
        model, spec = root / "model", ModelSpec(id=str(root / "model"))
        before = load_tokenizer(spec).get_vocab()
        settings = json.loads((model / "tokenizer_config.json").read_text())
        secret = str(root.parent / "outside" / "secret.txt")
        names = {"tokenizer_file": secret, "vocab_file": secret, "merges_file": secret, "spm_file": secret}
        (model / "tokenizer_config.json").write_text(json.dumps(settings | names | {"fast_tokenizer_files": [secret]}))
        tokenizer = load_tokenizer(spec)
        assert tokenizer.get_vocab() == before
        assert secret not in repr(vars(tokenizer))

    def test_a_tokenizer_can_be_saved_later(self, root: Path, tmp_path: Path) -> None:
        load_tokenizer(ModelSpec(id=str(root / "model"))).save_pretrained(tmp_path / "again")
        expected = AutoTokenizer.from_pretrained(root / "model").get_vocab()
        assert AutoTokenizer.from_pretrained(tmp_path / "again").get_vocab() == expected

    def test_weights_that_a_configuration_names_are_not_read_from_elsewhere(self, root: Path) -> None:
        model = root / "model"
        (root.parent / "outside" / "other.safetensors").write_bytes((model / "model.safetensors").read_bytes())
        configure(model, {"transformers_weights": "../../outside/other.safetensors"})
        with pytest.raises(ModelLoadError):
            load_model(ModelSpec(id=str(model)))

    @pytest.mark.parametrize(
        "index", ["pytorch_model.bin.index.json", "flax_model.msgpack.index.json", "docs.index.json"]
    )
    @pytest.mark.parametrize("names", [{}, {"w": "absent.bin"}])
    def test_an_index_that_is_not_read_is_left_alone(
        self, index: str, names: dict[str, str], root: Path, policy: Policy
    ) -> None:
        (root / "model" / index).write_text(json.dumps({"weight_map": names}))
        policy.check(job(root))
        with under(policy.reading_rules()):
            load_model(ModelSpec(id=str(root / "model")))

    @pytest.mark.parametrize("name", ["own.safetensors", "parts/own.safetensors"])
    def test_weights_that_a_configuration_names_are_read_and_count(self, name: str, root: Path) -> None:
        model, spec = root / "model", ModelSpec(id=str(root / "model"))
        (model / name).parent.mkdir(exist_ok=True)
        (model / "model.safetensors").rename(model / name)
        configure(model, {"transformers_weights": name})
        assert name in load_model(spec).files.digests
        (model / name).unlink()
        with pytest.raises(ModelLoadError, match=r"own\.safetensors, which is not there"):
            load_model(spec)

    @pytest.mark.parametrize("key", ["vocab", "merges", "init_inputs", "sp_model_kwargs", "source_spm"])
    def test_no_key_of_a_tokenizer_names_a_file(self, key: str, root: Path) -> None:
        model = root / "model"
        os.mkfifo(root / "pipe")
        pipe = str(root / "pipe")
        named = {"init_inputs": [pipe], "sp_model_kwargs": {"model_file": pipe}}.get(key, pipe)
        settings = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {key: named}))
        with opened_checkpoint(ModelSpec(id=str(model)), weights=False) as place:
            assert pipe not in Path(place, "tokenizer_config.json").read_text()

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "adapter_config.json"])
    def test_large_settings_are_not_read(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("checkpoint_files", "configuration_file"):
            monkeypatch.setattr(f"factor_search.model.{module}.LARGEST_JSON", 2**20)
        with (root / "model" / name).open("w") as stream:
            stream.write('{"base_model_name_or_path": "b"}')
            stream.truncate(2**21)
        with pytest.raises(ModelLoadError, match=r"larger than|adapters of an unnamed model"):
            load_config(ModelSpec(id=str(root / "model")))

    @pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
    def test_other_files_take_no_descriptors(self, root: Path) -> None:
        for number in range(300):
            (root / "model" / f"{number}.{('json', 'png', 'pth')[number % 3]}").write_text("{}")
        with opened_checkpoint(ModelSpec(id=str(root / "model"))) as place:
            opened = [one for one in DESCRIPTORS.iterdir() if str(root) in os.path.realpath(one)]
            assert len(opened) < 10
            assert not Path(place, "1.png").exists()

    def test_what_a_killed_process_left_is_removed(self, root: Path) -> None:
        spec = str(root / "model")
        code = (
            "import os\nfrom factor_search.model.checkpoint_files import opened_checkpoint\n"
            "from factor_search.spec import ModelSpec\n"
            f"with opened_checkpoint(ModelSpec(id={spec!r})) as place:\n    print(place, flush=True)\n    os._exit(1)"
        )
        left = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
        assert left.is_dir()
        with opened_checkpoint(ModelSpec(id=spec)) as place:
            assert left.parent == Path(place).parent
            assert not left.exists()
            with opened_checkpoint(ModelSpec(id=spec)):
                assert Path(place).exists()

    def test_names_in_messages_are_those_of_the_user(self, root: Path) -> None:
        (root / "model" / "config.json").write_text("{")
        with pytest.raises(ModelLoadError) as raised:
            load_config(ModelSpec(id=str(root / "model")))
        assert str(root / "model") in str(raised.value)
        assert "partial-" not in str(raised.value)

    def test_a_folder_of_too_many_files_is_not_a_checkpoint(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("factor_search.model.checkpoint_files.MOST_FILES", 2)
        with pytest.raises(ModelLoadError, match="more than 2 files"):
            load_config(ModelSpec(id=str(root / "model")))

    def test_a_quantisation_has_precisions_of_its_own(self) -> None:
        check_values({"quantization_config": {"dtype": "fp8_e4m3", "q": [{"dtype": "mxfp4"}]}}, "config.json")
        for part in ({"dtype": "mxfp4"}, {"text_config": {"dtype": "mxfp4"}}):
            with pytest.raises(ModelLoadError, match="dtype is 'mxfp4'"):
                check_values(part, "config.json")

    def test_a_file_is_not_a_model(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(root / "model")
        with pytest.raises(ModelLoadError, match="no model folder"):
            load_config(ModelSpec(id="config.json"))


class TestNamedCode:
    @given(
        around=st.lists(st.sampled_from(["text_config", "vision_config", "list", "thinker_config"]), max_size=3),
        key=st.sampled_from(
            ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"]
        ),
        name=st.sampled_from(["owner/repo", "owner/repo@main:function", "paged|owner/repo"]),
        by_part=st.booleans(),
    )
    @FEW
    def test_kernels_that_a_configuration_names_are_refused(
        self, around: list[str], key: str, name: str, by_part: bool, checkpoint: Path, tmp_path_factory: Any
    ) -> None:
        root = tmp_path_factory.mktemp("root")
        shutil.copytree(checkpoint, root / "model")
        value: Any = {key: {"": name, "text_config": "sdpa"} if by_part else name}
        for part in around:
            value = {"further": [value]} if part == "list" else {part: value}
        configure(root / "model", value)
        with pytest.raises(ModelLoadError, match=r"_implementation\w* of its configuration is .*a kernel of the hub"):
            load_config(ModelSpec(id=str(root / "model")))

    def test_names_of_transformers_are_not(self, root: Path) -> None:
        configure(root / "model", {"_attn_implementation": "eager"})
        load_config(ModelSpec(id=str(root / "model")))
        configure(root / "model", {"_attn_implementation": "owner/repo"})
        load_config(ModelSpec(id=str(root / "model"), trust_remote_code=True))

    def test_code_of_another_repository_needs_the_hub(self, root: Path) -> None:
        configure(root / "model", {"auto_map": {"AutoConfig": "owner/repo--configuration.Config"}})
        code = Policy((root,), allow_hub=False, allow_remote_code=True)
        with (
            under(code.reading_rules()),
            pytest.raises(ModelLoadError, match="auto_map names code of another repository"),
        ):
            load_config(ModelSpec(id=str(root / "model"), trust_remote_code=True))

    @pytest.mark.parametrize(
        "task",
        [
            "tasks/own.yaml",
            "own.yaml",
            "own.YML",
            "/etc/passwd",
            "../x",
            "piqa*",
            "a b",
            "",
            "http://host/x",
            "-x",
            "a\n",
            "x" * 300,
        ],
    )
    def test_tasks_of_the_harness_are_names(self, task: str, root: Path) -> None:
        with pytest.raises(SpecError, match="harness"):
            check_task_names([task])
        stages = [{"kind": "search", "target_length": 128}, {"kind": "evaluate", "harness": [task]}]
        with pytest.raises(SpecError, match="harness"):
            parse_plan({"model": str(root / "model"), "data": ["a.txt"], "stages": stages})

    def test_only_registered_tasks_are_done(self) -> None:
        check_task_names(["piqa", "mmlu_flan_n_shot", "arc-c.v2"], {"piqa", "mmlu_flan_n_shot", "arc-c.v2"})
        with pytest.raises(SpecError, match="has no task 'boolq'"):
            check_task_names(["piqa", "boolq"], {"piqa"})

    def test_tasks_need_the_hub(self, root: Path, policy: Policy) -> None:
        stages = [{"kind": "search", "target_length": 128}, {"kind": "evaluate", "harness": ["piqa"]}]
        plan = parse_plan({"model": str(root / "model"), "data": [str(root / "texts" / "1.txt")], "stages": stages})
        closed, open_ = (Policy((root,), allow_hub, False, root / "made") for allow_hub in (False, True))
        with pytest.raises(SpecError, match=r"stages\[1\]\.harness: .*--hub"):
            closed.check_plan(plan)
        open_.check_plan(plan)


class TestWalks:
    @pytest.fixture
    def deep(self, root: Path) -> Path:
        """Folders nine deep, with two in each, and links back to the top."""
        places = [root / "deep"]
        for _ in range(8):
            places = [place / name for place in places for name in "ab"]
        for place in places:
            place.mkdir(parents=True)
        (places[0] / "x.txt").write_text("text")
        (places[-1] / "back").symlink_to(root / "deep")
        return root / "deep"

    def test_repeated_wildcards_take_no_longer(self, deep: Path, policy: Policy) -> None:
        began = time.monotonic()
        for number in range(0, 41, 8):
            pattern = str(deep / "/".join(["**"] * number) / "**" / "*" / "**" / "x.txt")
            policy.check(job(deep.parent, data=[pattern]), AT_SUBMISSION)
        assert time.monotonic() - began < 6 * AT_SUBMISSION.seconds
        found = matching_files(f"{deep}/**/**/x.txt")
        assert found == [str(next(deep.rglob("x.txt")))], "a link to a folder around it is not searched in again"

    @pytest.mark.parametrize("limit", [WalkLimit(100, 60.0), WalkLimit(10**6, 0.0)])
    @pytest.mark.parametrize("pattern", ["**/x.txt", "**/**/**", "*/*/*/*/*/*/*/*/none", "**/none"])
    def test_a_walk_that_is_too_long_is_refused(
        self, pattern: str, limit: WalkLimit, deep: Path, policy: Policy
    ) -> None:
        with pytest.raises(SpecError, match="looking at more than"):
            policy.check(job(deep.parent, data=[str(deep / pattern)]), limit)

    def test_all_globs_of_a_job_share_one_limit(self, deep: Path, policy: Policy) -> None:
        limit, pattern = WalkLimit(5_000, 60.0), str(deep / "**" / "x.txt")
        policy.check(job(deep.parent, data=[pattern]), limit)
        with pytest.raises(SpecError, match="looking at more than 5,000"):
            policy.check(job(deep.parent, data=[pattern] * 20), limit)

    def test_every_match_is_checked(self, root: Path, policy: Policy) -> None:
        many = root / "many"
        many.mkdir()
        for number in range(300):
            (many / f"{number:03}.txt").touch()
        (many / "zzz.txt").symlink_to(root.parent / "outside" / "secret.txt")
        with pytest.raises(SpecError, match=r"zzz\.txt links out"):
            policy.check(job(root, data=[str(many / "*")]))

    def test_an_existing_path_is_itself(self, tmp_path: Path) -> None:
        for name in ("a[1].txt", "a1.txt"):
            (tmp_path / name).touch()
        assert matching_files(str(tmp_path / "a[1].txt")) == [str(tmp_path / "a[1].txt")]
        assert matching_files(str(tmp_path / "a[1]*")) == [str(tmp_path / "a1.txt")]

    @given(
        pattern=st.lists(st.sampled_from(["*", "**", "a", "?", "*.txt", ".*", "[ab]", "x.txt"]), min_size=1, max_size=5)
    )
    @FEW
    def test_matches_are_those_of_the_standard_library(self, pattern: list[str], tmp_path_factory: Any) -> None:
        import glob

        folder = tmp_path_factory.getbasetemp() / "tree"
        for name in ("a/b/x.txt", "b/a/.h/x.txt", "a/y.txt", "x.txt", ".z.txt", "b/[ab]/x.txt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        asked = str(folder / "/".join(pattern))
        expected = {name.rstrip("/") for name in glob.glob(asked, recursive=True)}
        if os.path.lexists(asked):
            expected = {asked.rstrip("/")}
        try:
            found = {name.rstrip("/") for name in matching_files(asked)}
        except DataError:
            found = set()
        assert found == expected


class TestOpening:
    def test_a_worker_checks_what_it_opens(self, root: Path, policy: Policy) -> None:
        spec = job(root)
        policy.check(spec)
        worker = ModelWorker(1, policy)
        assert worker.prepare(spec).samples.search.samples
        (root / "texts" / "3.txt").unlink()
        (root / "texts" / "3.txt").symlink_to(root.parent / "outside" / "secret.txt")
        with pytest.raises(SpecError, match=r"3\.txt links out"):
            worker.prepare(spec)
        assert reading_rules().roots is None, "only within the worker"

    def test_names_of_documents_are_as_they_were_given(self, root: Path, policy: Policy) -> None:
        (root / "linked").symlink_to(root / "texts")
        data = job(root, data=[str(root / "linked" / "*.txt")]).data
        plain = [one.source for one in documents_of(data)]
        with under(policy.reading_rules()):
            assert [one.source for one in documents_of(data)] == plain

    @pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".jsonl.gz"])
    def test_documents_behind_a_link_have_the_format_of_its_name(
        self, ending: str, root: Path, policy: Policy, tmp_path: Path
    ) -> None:
        content = b"text\none\ntwo\n" if ending == ".csv" else b'{"text": "one"}\n{"text": "two"}\n'
        (root / "blob").write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
        (root / "more").mkdir()
        (root / "more" / f"link{ending}").symlink_to(root / "blob")
        for pattern in (f"link{ending}", "*"):
            with under(policy.reading_rules()):
                found = list(documents_from_files([str(root / "more" / pattern)]))
            assert [one.text for one in found] == ["one", "two"]
            assert found[1].source == f"{root / 'more' / f'link{ending}'}#1"

    def test_pipes_and_folders_are_not_opened(self, root: Path) -> None:
        os.mkfifo(root / "pipe")
        for name in ("pipe", "texts"):
            with pytest.raises(OSError, match="not a regular file"):
                open_readable(root / name, "key")

    @pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system has no links to open files")
    def test_what_was_opened_is_what_counts(self, root: Path, policy: Policy) -> None:
        """A link is changed as fast as possible between two files, one of which may not be read."""
        link, inside, secret = root / "link.txt", root / "texts" / "1.txt", root.parent / "outside" / "secret.txt"
        stop = threading.Event()

        def change() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                other = root / f"link{number % 2}.new"
                other.symlink_to(inside if number % 2 else secret)
                other.replace(link)

        link.symlink_to(inside)
        thread = threading.Thread(target=change)
        thread.start()
        try:
            read, refused = set(), 0
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                with under(policy.reading_rules()):
                    try:
                        descriptor = open_readable(link, "key")
                    except SpecError:
                        refused += 1
                        continue
                    with os.fdopen(descriptor) as stream:
                        read.add(stream.read(6))
        finally:
            stop.set()
            thread.join()
        assert read == {"Text 1"}
        assert refused

    def test_rules_belong_to_a_thread(self, root: Path) -> None:
        seen: list[ReadingRules] = []
        with under(ReadingRules(roots=(root,))):
            thread = threading.Thread(target=lambda: seen.append(reading_rules()))
            thread.start()
            thread.join()
            assert reading_rules().roots == (root,)
        assert seen[0].roots is None


ROWS = "\n".join(json.dumps({"text": f"{number} x"}) for number in range(5)).encode()


def card(file: str) -> bytes:
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - {{split: validation, path: {file}}}\n---\n".encode()
    )


@pytest.fixture(scope="module")
def hub(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    pytest.importorskip("datasets")
    secret = tmp_path_factory.mktemp("outside") / "secret.jsonl"
    secret.write_text('{"text": "secret"}')
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": {"w": "../../x"}}).encode()}
    kernel = json.dumps(json.loads(files["config.json"]) | {"_attn_implementation": "o/kernel"}).encode()
    parts = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("hub") / "sharded"))
    sharded(parts, "parts/one.safetensors")
    repositories = {
        "models/o/model": files,
        "models/o/sharded": {
            str(one.relative_to(parts)): one.read_bytes() for one in parts.rglob("*") if one.is_file()
        },
        "models/o/index": {name: data for name, data in files.items() if "safetensors" not in name} | index,
        "models/o/kernel": files | {"config.json": kernel},
        "datasets/o/good": {"README.md": card("validation.jsonl"), "validation.jsonl": ROWS},
        "datasets/o/local": {"README.md": card(str(secret)), "validation.jsonl": ROWS},
        "datasets/o/other": {"README.md": card("hf://datasets/o/good/validation.jsonl")},
        "datasets/o/tar": {"validation.tar": b"x" * 2000},
    }
    with serving(repositories) as hub:
        yield hub


class TestTheHub:
    def test_data_sets_are_read_at_their_commit_and_from_their_own_files(self, hub: Hub, tmp_path: Path) -> None:
        found = hub.run(
            "import json\nfrom factor_search.text.documents import documents_from_hub\n"
            "def read(name):\n"
            "    try:\n"
            f"        return [one.text for one in documents_from_hub(name, None, 'validation', 'text', {COMMIT!r})]\n"
            "    except Exception as error:\n"
            "        return type(error).__name__ + ': ' + str(error)\n"
            "print(json.dumps({name: read(f'o/{name}') for name in ('good', 'local', 'other', 'tar')}))",
            tmp_path,
        )
        assert found["good"] == [json.loads(line)["text"] for line in ROWS.decode().splitlines()]
        assert "not for text" in found["tar"]
        assert all(found[name].startswith("DataError: ") for name in ("local", "other", "tar"))
        asked = [path for path in hub.asked if path.startswith("datasets/o/good/resolve")]
        assert {path.split("/")[4] for path in asked} == {COMMIT}

    @pytest.mark.slow
    def test_models_are_loaded_at_their_commit(self, hub: Hub, tmp_path: Path) -> None:
        found = hub.run(
            "import json\nfrom factor_search.model.loading import load_model\n"
            "from factor_search.spec import ModelSpec\n"
            "def load(name):\n"
            "    try:\n"
            f"        return type(load_model(ModelSpec(id=name, revision={COMMIT!r})).model).__name__\n"
            "    except Exception as error:\n"
            "        return type(error).__name__ + ': ' + str(error)\n"
            "print(json.dumps({name: load(f'o/{name}') for name in ('model', 'index', 'kernel')}))",
            tmp_path,
        )
        assert found["model"] == "LlamaForCausalLM"
        asked = {path.split("/")[3] for path in hub.asked if path.startswith("o/model/resolve")}
        assert asked == {COMMIT}
        assert "not a file below its folder" in found["index"]
        assert "a kernel of the hub" in found["kernel"]
        content = hub.run(
            "import json\nfrom factor_search.model.loading import load_model\n"
            "from factor_search.spec import ModelSpec\nprint(json.dumps(load_model(ModelSpec(id='o/model')).content))",
            tmp_path,
        )
        assert content == COMMIT, "of the main branch, whose next commit is another model"

    def test_a_service_loads_and_exports_a_sharded_model(self, hub: Hub, tmp_path: Path) -> None:
        """The rules for files of users do not apply to the cache of the hub's client."""
        found = hub.run(
            "import json, os\nfrom pathlib import Path\nfrom factor_search.export.contract import Source\n"
            "from factor_search.export.registry import export\nfrom factor_search.factors import Factors\n"
            "from factor_search.factors_file import factors_file\nfrom factor_search.files.reading import under\n"
            "from factor_search.model.loading import load_model\nfrom factor_search.spec import ModelSpec\n"
            "from factor_search.factors_file import FactorsModel\nfrom workers.policy import Policy\n"
            f"place = Path({str(tmp_path)!r})\nspec = ModelSpec(id='o/sharded', device='cpu')\n"
            "with under(Policy((place / 'root',), True, False, place / 'made').reading_rules()):\n"
            "    loaded = load_model(spec)\n"
            "    theta = loaded.geometry.rope_theta\n"
            "    model = FactorsModel(id=spec.id, architecture='L', rope_theta=theta, rotary_dim=16, "
            "original_length=64, base_rope_type='default')\n"
            "    file, out = factors_file(Factors.of([1.5] * 8), model, 128), place / 'made' / 'm'\n"
            "    os.link = lambda *paths: (_ for _ in ()).throw(OSError('another file system'))\n"
            "    export('huggingface', Source(file, spec), out)\n"
            "    again = load_model(ModelSpec(id=str(out)))\n"
            "print(json.dumps([len(dict(one.model.named_parameters())) for one in (loaded, again)]))",
            tmp_path,
        )
        assert found[0] == found[1] > 0

    PIN = (
        "import json\nfrom workers.pinning import pinned\nfrom factor_search.plan.spec import parse_plan\n"
        "from factor_search.spec import parse_spec\n"
        "def pin(model, data, revision=None):\n"
        "    asked = {'model': {'id': model, 'revision': revision}, 'data': data, 'target_length': 128}\n"
        "    try:\n"
        "        spec = pinned(parse_spec(asked))\n"
        "        return [spec.model.revision, spec.data.revision]\n"
        "    except Exception as error:\n"
        "        return type(error).__name__ + ': ' + str(error)\n"
    )

    def test_names_become_commits(self, hub: Hub, tmp_path: Path) -> None:
        good = {"dataset": "o/good"}
        calls = [
            ("o/model", good, None),
            ("o/model", ["a.txt"], "main"),
            ("./m", good, None),
            ("o/model", good, "f" * 40),
        ]
        missing = [("o/none", good, None), ("o/model", {"dataset": "o/none"}, None), ("o/model", good, "v9")]
        found = hub.run(f"{self.PIN}print(json.dumps([pin(*call) for call in {calls + missing!r}]))", tmp_path)
        assert found[:4] == [[COMMIT, COMMIT], [COMMIT, None], [None, COMMIT], ["f" * 40, COMMIT]]
        assert found[4].startswith("SpecError: model.id: there is no model o/none on the hub")
        assert found[5].startswith("SpecError: data.dataset: there is no dataset o/none on the hub")
        assert found[6] == "SpecError: model.id: o/model has no revision 'v9' on the hub"

    def test_without_the_hub_the_cache_says_the_commit(self, hub: Hub, tmp_path: Path) -> None:
        fetch = "from huggingface_hub import snapshot_download\nsnapshot_download('o/model')\nprint(0)"
        ask = f"{self.PIN}print(json.dumps([pin('o/model', ['a.txt']), pin('o/kernel', ['a.txt'])]))"
        hub.run(fetch, tmp_path)
        for url in (hub.url, "http://127.0.0.1:9"):
            found = Hub({})
            found.url = url
            known, unknown = found.run(ask, tmp_path, offline=url == hub.url)
            assert known == [COMMIT, None]
            assert unknown.startswith("SpecError: model.id: the commit of o/kernel is not known here")
            assert "give it as revision" in unknown

    def test_all_stages_of_a_plan_have_the_commit(self, hub: Hub, tmp_path: Path) -> None:
        code = (
            "import json\nfrom workers.pinning import pinned\nfrom factor_search.plan.spec import parse_plan\n"
            "from factor_search.plan.work import work_of\n"
            "plan = parse_plan({'model': 'o/model', 'data': {'dataset': 'o/good'}, 'recipe': 'longrope', "
            "'target_length': 1024, 'middle_length': 256})\n"
            "work = work_of(pinned(plan.expanded()), 0, [])\n"
            "print(json.dumps([work.job.model.revision, work.job.data.revision]))"
        )
        assert hub.run(code, tmp_path) == [COMMIT, COMMIT]


def configure(model: Path, changes: dict[str, Any]) -> None:
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | changes))


def sharded(model: Path, shard: str) -> set[str]:
    """Put the weights of a model into one shard, which an index names; return the names of the weights."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    (model / shard).parent.mkdir()
    (model / "model.safetensors").rename(model / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(names, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return names
