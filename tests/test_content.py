"""What a checkpoint's identity covers, and what happens when a file, a device or a library changes."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForCausalLM

from bench.stub import PREPARED, stub_spec
from factor_search.errors import ModelChangedError, ModelLoadError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.model.content import Content
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import DataSpec, JobSpec, ModelSpec
from factor_search.text.samples import Samples, SampleSet
from storage.evaluations import EvaluationStore
from storage.events import read_events
from tests.service import FaultyWorker, Service, undisturbed
from tests.test_evaluation import sample_set
from workers.model_worker import ModelWorker, Prepared, Setting, check_same

INDEX = "model.safetensors.index.json"
FACTORS = Factors.of([1.0 + 0.5 * i for i in range(8)])


def in_shards(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with half of its weights in another folder, and a second file of weights that is not used."""
    LlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(folder, max_shard_size="20KB")
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
    shutil.copyfile(checkpoint / "tokenizer_config.json", folder / "tokenizer_config.json")
    index = json.loads((folder / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    (folder / "more").mkdir()
    (folder / shards[0]).rename(folder / "more" / "first.safetensors")
    renamed = {shards[0]: "more/first.safetensors"}
    index["weight_map"] = {name: renamed.get(shard, shard) for name, shard in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "code.py").write_text("a = 1")
    (folder / "more" / "code.py").write_text("b = 1")
    return folder


def content(folder: Path, own_code: bool = False) -> str:
    return Content.of(ModelSpec(id=str(folder), trust_remote_code=own_code), AutoConfig.from_pretrained(folder)).sha256


def flipped(file: Path, how: str) -> None:
    """Change a byte of a file, but neither its size nor its time of modification."""
    before, data = file.stat(), bytearray(file.read_bytes())
    place = len(data) - 1 if file.suffix == ".safetensors" else data.rindex(b"1")
    data[place] ^= 2
    if how == "in place":
        with file.open("r+b") as stream:
            stream.write(data)
    else:
        other = file.with_name("other")
        other.write_bytes(data)
        other.replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="module")
def sharded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_shards(checkpoint, tmp_path_factory.mktemp("sharded") / "model")


@given(
    st.sampled_from(["more/first.safetensors", "second", "config.json", "code.py", "more/code.py"]),
    st.sampled_from(["in place", "replaced"]),
)
@settings(max_examples=10, deadline=None)
def test_every_file_that_is_loaded_counts(sharded: Path, name: str, how: str) -> None:
    """Also where size and time of modification stay the same."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sharded, Path(place, "model")))
        if name == "second":
            name = next(file.name for file in folder.glob("model-*.safetensors"))
        before, with_code = content(folder), content(folder, own_code=True)
        flipped(folder / name, how)
        assert (content(folder) != before) == (not name.endswith(".py"))
        assert content(folder, own_code=True) != with_code


def test_files_without_an_effect_on_logits_do_not_count(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    before = content(folder)
    for name in ("README.md", "generation_config.json", "tokenizer.json", "more/notes.txt"):
        (folder / name).write_text("{}")
    assert content(folder) == before
    (folder / "adapter_config.json").write_text("{}")
    assert content(folder) != before


def test_an_index_that_chooses_other_files_counts(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copyfile(checkpoint / "model.safetensors", tmp_path / f"{name}.safetensors")
    shutil.copyfile(checkpoint / "config.json", tmp_path / "config.json")
    found = set()
    for name in ("a", "b"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": f"{name}.safetensors"}}))
        found.add(content(tmp_path))
    assert len(found) == 2


def test_a_whole_folder_has_the_identity_that_earlier_versions_gave_it(checkpoint: Path, tmp_path: Path) -> None:
    def earlier(folder: Path) -> str:
        files = [file for file in folder.iterdir() if file.suffix == ".safetensors" or file.name == "config.json"]
        return sha256_of({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)})

    assert content(checkpoint) == earlier(checkpoint)
    LlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / INDEX).exists()
    assert content(tmp_path / "shards") == earlier(tmp_path / "shards")


def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    (folder / "more" / "first.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"names first\.safetensors, which is not there"):
        load_model(ModelSpec(id=str(folder)))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def test_a_file_that_changes_while_it_is_loaded_is_noticed(copied: Path) -> None:
    load = LlamaForCausalLM.from_pretrained

    def and_changed(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        flipped(copied / "model.safetensors", "replaced")
        return loaded

    with (
        mock.patch.object(LlamaForCausalLM, "from_pretrained", and_changed),
        pytest.raises(ModelChangedError, match=r"model\.safetensors has changed since the model was loaded: restore"),
    ):
        load_model(ModelSpec(id=str(copied)))


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_an_evaluation_with_weights_that_have_changed_is_not_kept(copied: Path, how: str) -> None:
    loaded = load_model(ModelSpec(id=str(copied)))
    with LocalEvaluator(loaded, 128) as evaluator:
        first = evaluator.evaluate(FACTORS, sample_set())
        os.link(copied / "model.safetensors", copied / "a link, as exports make them")
        assert evaluator.evaluate(FACTORS, sample_set()).losses == first.losses
        flipped(copied / "model.safetensors", how)
        with pytest.raises(ModelChangedError):
            evaluator.evaluate(FACTORS, sample_set())
        (copied / "model.safetensors").unlink()
        assert evaluator.evaluate(FACTORS, sample_set()).outcome == "ok"


@pytest.fixture
def spec(copied: Path, texts: Path) -> JobSpec:
    data = DataSpec(files=[str(texts / "*.txt")], search_documents=2, validation_documents=1, held_out_documents=1)
    return JobSpec(model=ModelSpec(id=str(copied)), data=data, target_length=128)


def test_a_worker_does_not_keep_a_model_whose_files_have_changed(spec: JobSpec, copied: Path) -> None:
    worker = ModelWorker()
    before = worker.prepare(spec)
    setting = Setting.of(spec, before.identity)
    worker.load(setting)
    flipped(copied / "model.safetensors", "replaced")
    after = worker.prepare(spec)
    assert after.identity["model"] != before.identity["model"]
    with pytest.raises(ModelChangedError, match="the files of the model are not those that the job began with"):
        worker.load(setting)
    worker.load(Setting.of(spec, after.identity))


def test_that_a_model_was_replaced_comes_before_what_is_wrong_with_the_new_one(spec: JobSpec, copied: Path) -> None:
    begun = ModelWorker().prepare(spec).identity
    setting = Setting.of(spec, begun)
    assert ModelWorker().prepare(spec, None, begun | {"torch": "1.0"}).identity == begun, "other releases may continue"
    weights = {name: torch.full_like(one, math.nan) for name, one in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelChangedError, match="the files of the model are not those that the job began with"):
        ModelWorker().load(setting)
    with pytest.raises(ModelChangedError, match="the files of the model are not those that the job began with"):
        ModelWorker().prepare(spec, None, begun)
    with pytest.raises(UnsupportedModelError, match="weights are damaged"):
        ModelWorker().prepare(spec)


def test_a_key_knows_the_kind_of_device_and_the_versions(copied: Path) -> None:
    loaded = load_model(ModelSpec(id=str(copied)))
    assert loaded.environment["device"] == "cpu"
    keys = set()
    for place in ("torch.__version__", "factor_search.model.loading.transformers_version"):
        for version in ("1.2.3", "1.2.3+cpu", "1.2.4"):
            with mock.patch(place, version):
                keys.add(LocalEvaluator(loaded, 128).key(FACTORS, sample_set()))
    assert len(keys) == 4
    with mock.patch.object(LoadedModel, "environment", loaded.environment | {"device": "cuda"}):
        keys.add(LocalEvaluator(loaded, 128).key(FACTORS, sample_set()))
    assert len(keys) == 5
    assert LocalEvaluator(loaded, 128).earlier_key(FACTORS, sample_set()) not in keys


@given(st.sampled_from(["device", "torch", "transformers", "dtype", "attention"]))
def test_a_worker_with_another_environment_is_refused_with_the_difference(name: str) -> None:
    begun = {"model": "m", "dtype": "float32", "attention": "sdpa", "device": "cpu", "torch": "2", "transformers": "4"}
    check_same(begun, dict(begun), "worker w")
    reason = f"worker w computes with {name} other, but the job was prepared with {name} {begun[name]}: give all"
    with pytest.raises(ModelChangedError, match=reason):
        check_same(begun, begun | {name: "other"}, "worker w")


def changed(**identity: str) -> Prepared:
    return replace(PREPARED, identity=PREPARED.identity | identity)


def paused_and_resumed(service: Service, after: Prepared) -> str:
    """Run a job half, pause it, and let another coordinator's workers continue, which prepare otherwise."""
    job, _ = service.jobs.submit(stub_spec(budget=60))
    service.faults.seconds = 0.02
    service.start(workers=2, make=preparing(service, PREPARED))
    service.candidates(job.id, 25)
    service.jobs.pause(job.id)
    service.wait(job.id, "paused")
    service.stop()
    service.faults.seconds = 0.002
    service.start(workers=2, make=preparing(service, after))
    service.jobs.resume(job.id)
    service.wait(job.id)
    return job.id


def preparing(service: Service, prepared: Prepared) -> Callable[[], FaultyWorker]:
    def make() -> FaultyWorker:
        worker = FaultyWorker(service.faults)
        worker.prepare = lambda spec: prepared  # type: ignore[method-assign]
        return worker

    return make


def test_a_job_whose_model_or_documents_have_changed_fails_with_the_reason(service: Service) -> None:
    job_id = paused_and_resumed(service, changed(model="other"))
    assert "the files of the model are not those that the job began with" in str(service.jobs.get(job_id).error)
    others = tuple(replace(one, sha256=one.sha256[::-1]) for one in PREPARED.samples.search.samples)
    samples = Samples(SampleSet("search", others), PREPARED.samples.validation, PREPARED.samples.held_out)
    service.stop()
    job_id = paused_and_resumed(service, replace(PREPARED, samples=samples))
    assert "the documents are not those that the job began with" in str(service.jobs.get(job_id).error)


def test_a_job_continues_with_its_results_where_a_library_was_upgraded(service: Service) -> None:
    job_id = paused_and_resumed(service, changed(torch="9.9"))
    assert service.jobs.get(job_id).state == "finished"
    assert service.factors(job_id) == undisturbed(stub_spec(budget=60))
    (event,) = [one for one in read_events(service.database, job_id) if one.kind == "environment_changed"]
    assert event.data == {"torch": [None, "9.9"]}
    rows = EvaluationStore(service.database).of_job(job_id, limit=100)
    assert len({row.factors for row in rows}) == 60
    assert max(service.faults.begun.values()) == 1, "nothing is evaluated again"


def test_a_job_fails_at_once_when_a_worker_finds_another_model(service: Service) -> None:
    def fault() -> None:
        raise ModelChangedError("model.safetensors has changed")

    service.faults.at[12] = fault
    service.start(workers=2)
    job, _ = service.jobs.submit(stub_spec(budget=60))
    assert service.wait(job.id) == "failed"
    assert service.jobs.get(job.id).error == "model.safetensors has changed"
    assert service.faults.begun.total() < 30
