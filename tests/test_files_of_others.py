"""Files of others are data: what is wrong in one is refused with the file and the field, by every interface."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from transformers import AutoConfig

from api.app import create_app
from api.cli import main
from bench.mutated_files import FIELDS, HOSTILE, KINDS, ROPE_FIELDS, WRITERS, Mutation
from bench.mutation_materials import make_materials
from bench.mutations import load, submit
from factor_search.errors import FactorSearchError, FactorsError, ModelLoadError, UnsupportedModelError
from factor_search.factors_file import parse_factors, read_factors
from factor_search.files.gguf import ARRAY, STRING, UINT32, Entry, read_header, text_entry, write_gguf
from factor_search.files.json_documents import write_json
from factor_search.job import check_possible
from factor_search.methods import METHODS, closed_forms
from factor_search.model.configuration import read_geometry
from factor_search.model.configuration_values import check_values
from factor_search.model.loading import load_config, load_model
from factor_search.plan.checkpoint import check_checkpoint
from factor_search.spec import ModelSpec, parse_spec
from tests import rest_service
from tests.conftest import save_checkpoint
from tests.families import FAMILIES, MORE_FAMILIES, SMALL, tiny_model
from tests.gguf_files import file_of
from tests.test_model_cases import job
from tests.test_plan_checkpoint import awaiting, configured, tuned


@pytest.fixture
def client(tmp_path: Path, texts: Path) -> Iterator[TestClient]:
    from workers.policy import Policy

    policy = Policy((tmp_path, texts), allow_hub=False, allow_remote_code=False, work_folder=tmp_path / "made")
    with rest_service.calling(create_app(rest_service.settings(tmp_path, policy=policy))) as client:
        yield client


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a whole model."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def refused_everywhere(
    model: Path,
    words: str,
    client: TestClient,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    inspect: bool = True,
) -> None:
    """Check that inspect, run and a submission say the same in one line."""
    document = job(str(model), texts)
    spec = model.parent / "job.json"
    write_json(spec, document)
    calls = [["run", str(spec), "--out", str(model.parent / "out")]]
    for call in [["inspect", "--model", str(model)], *calls] if inspect else calls:
        capsys.readouterr()
        assert main(call) == 1, call
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error
        assert "internal error" not in error
    response = client.post("/v1/jobs", json=document)
    assert response.status_code == 422, response.text
    assert words in response.json()["detail"]
    (fault,) = response.json()["errors"]
    assert fault["pointer"] == "#/model"
    assert words in fault["detail"]


def changed(folder: Path, **changes: Any) -> None:
    """Put values into its configuration, which has no RoPE parameters under another name then."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    if "rope_scaling" in changes:
        content.pop("rope_parameters")
    file.write_text(json.dumps(content | changes))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"head_dim": 2**63}, "config.json: head_dim is a number above 2^53"),
            ({"head_dim": -16}, "config.json: head_dim is -16, not a whole number from 0 to 65536"),
            ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole number"),
            ({"num_labels": 10**9}, "num_labels is 1000000000"),
            (
                {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1e9}},
                "partial_rotary_factor is 1000000000.0",
            ),
            ({"rope_parameters": {"rope_theta": "1"}}, "rope_parameters.rope_theta is '1', not a number from 1"),
            ({"rope_parameters": [1]}, "rope_parameters is a list, not an object"),
            ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, "rope_scaling.type is a list, not a text"),
            ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "rope_scaling.factor is nan, not a number"),
            ({"max_position_embeddings": float("inf")}, "max_position_embeddings is inf"),
            ({"max_position_embeddings": -64}, "max_position_embeddings is -64"),
            ({"max_position_embeddings": 5}, "an original length in tokens of 5, which is not from 8"),
            ({"architectures": {"": 1}}, "architectures is an object, not a list of texts"),
            ({"vocab_size": "many"}, "vocab_size is 'many'"),
            ({"dtype": "load"}, "dtype is 'load', not a precision"),
            ({"text_config": {"dtype": "load"}}, "dtype is 'load', not a precision"),
            ({"text_config": 3}, "text_config is 3, not an object"),
            ({"pad_token_id": 2**70}, "pad_token_id is a number above 2^53, which is too large"),
            ({"hidden_act": {"a": 1}}, "hidden_act"),
        ],
        ids=str,
    )
    def test_values_that_cannot_be_meant(
        self,
        changes: dict[str, Any],
        words: str,
        folder: Path,
        client: TestClient,
        texts: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        changed(folder, **changes)
        refused_everywhere(folder, words, client, texts, capsys)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "config.json is not JSON"),
            ('{"a": ' * 50_000, "config.json is nested too deeply"),
            ('{"model_type": "llama", "a": ' + "[" * 40 + "]" * 40 + "}", "is inside 33 objects and lists"),
            ("[1]", "config.json holds a list, not the configuration of a model"),
            (b"\xff\xfe", "config.json is not UTF-8 text"),
            (" " * (16 * 2**20 + 1), "config.json is larger than 16 MiB"),
        ],
        ids=["cut", "deep", "too deep", "list", "bytes", "large"],
    )
    def test_files_that_are_none(self, content: str | bytes, words: str, folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "config.json").write_bytes(data)
        with pytest.raises(ModelLoadError, match=words) as refused:
            load_config(ModelSpec(id=str(folder)))
        assert "\n" not in str(refused.value)

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(field=st.sampled_from([*FIELDS, *ROPE_FIELDS]), value=st.sampled_from(HOSTILE), in_rope=st.booleans())
    def test_any_value_of_any_field(
        self, field: str, value: Any, in_rope: bool, folder: Path, checkpoint: Path
    ) -> None:
        content = json.loads((checkpoint / "config.json").read_text())
        (content["rope_parameters"] if in_rope else content)[field] = value
        (folder / "config.json").write_text(json.dumps(content))
        refusal = ""
        try:
            geometry = read_geometry(load_config(ModelSpec(id=str(folder))))
            forms = closed_forms(geometry, 2 * geometry.original_length)
            assert {len(form.rescale_factors) for form in forms.values()} == {geometry.pairs}
            assert geometry.pairs <= 2**15
        except FactorSearchError as error:
            refusal = str(error)
        assert "\n" not in refusal

    def test_configurations_of_transformers_are_not_refused(self) -> None:
        for name, settings_of in (FAMILIES | MORE_FAMILIES).items():
            config = AutoConfig.for_model(name, **(SMALL | settings_of))
            content = json.loads(config.to_json_string(use_diff=False))
            assert check_values(content, name) is content

    def test_a_share_above_the_head(self) -> None:
        config = AutoConfig.for_model(
            "llama", **SMALL, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 3.0}
        )
        with pytest.raises(UnsupportedModelError, match="partial_rotary_factor 3"):
            read_geometry(config)


class TestWrongFolders:
    @pytest.mark.parametrize(
        ("files", "words"),
        [
            (("tokenizer.json",), "holds a tokenizer and no model: give the folder that also holds config.json"),
            (("a.gguf", "b.txt"), "holds GGUF files and no config.json: give one of them as the model"),
            (("model_index.json",), "holds a pipeline that makes images"),
            (("params.json", "tokenizer.model"), "in the format of its makers (params.json)"),
            (("checkpoint-5/config.json",), "has no config.json, but checkpoint-5 in it has: give that folder"),
            ((), "holds no model: there is no config.json in it"),
        ],
        ids=str,
    )
    def test_what_to_give_instead(
        self,
        files: tuple[str, ...],
        words: str,
        tmp_path: Path,
        client: TestClient,
        texts: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")
        refused_everywhere(folder, words, client, texts, capsys)

    def test_images(self, tmp_path: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
        AutoConfig.for_model("vit").save_pretrained(tmp_path / "model")
        refused_everywhere(tmp_path / "model", "has no RoPE parameters in its configuration", client, texts, capsys)

    @pytest.mark.parametrize("model_type", ["modernbert", "t5gemma"])
    def test_no_causal_model(
        self, model_type: str, tmp_path: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Inspect shows what it read, and says that nothing can be searched."""
        AutoConfig.for_model(model_type).save_pretrained(tmp_path / "model")
        words = {"modernbert": "give the checkpoint of its language model", "t5gemma": "give a causal language model"}
        refused_everywhere(tmp_path / "model", words[model_type], client, texts, capsys, inspect=False)
        assert main(["inspect", "--model", str(tmp_path / "model")]) == 0
        assert f"{words[model_type]}" in capsys.readouterr().out

    def test_an_adapter(
        self, folder: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_json(folder / "adapter_config.json", {"base_model_name_or_path": "some/model"})
        refused_everywhere(folder, "holds adapters of some/model, not a model: merge them", client, texts, capsys)

    def test_code_of_its_own(
        self, folder: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed(folder, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
        words = "needs Python code that comes with it, and runs only if you allow that"
        refused_everywhere(folder, words, client, texts, capsys)

    @pytest.mark.parametrize(
        ("kind", "words"), [("adapter", "holds an adapter (LoRA), not a model: merge it"), ("mmproj", "reads images")]
    )
    def test_gguf_files(
        self, kind: str, words: str, tmp_path: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        header = read_header(file_of(tmp_path))
        file = tmp_path / "other.gguf"
        with_kind = {**header.metadata, "general.type": text_entry(kind)}
        write_gguf(type(header)(header.file, header.version, with_kind, header.tensors), file)
        refused_everywhere(file, words, client, texts, capsys)


class TestWeights:
    def rewritten(self, folder: Path, change: Any) -> Path:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        return file

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("dtype", "X9", "has the dtype 'X9', which is not known"),
            ("dtype", [1], "has the dtype"),
            ("shape", [2**40, 2**40], "which are not those of its shape"),
            ("shape", "a", "which is not a list of sizes"),
            ("data_offsets", [0, 2**60], "which are not two numbers of bytes"),
            ("data_offsets", [0, 256], "overlap those of another tensor"),
        ],
        ids=str,
    )
    def test_headers(
        self,
        key: str,
        value: Any,
        words: str,
        folder: Path,
        client: TestClient,
        texts: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        name = "model.norm.weight"
        self.rewritten(folder, lambda header: header[name].update({key: value}))
        refused_everywhere(
            folder,
            f"model.safetensors: {'the data_offsets of ' * ('overlap' in words)}tensor",
            client,
            texts,
            capsys,
            inspect=False,
        )
        with pytest.raises(ModelLoadError, match=words):
            load_model(ModelSpec(id=str(folder)))

    @pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
    def test_cut_and_lengthened(self, size: int, folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:size] if size >= 0 else struct.pack("<Q", 2**63) + content[8:])
        with pytest.raises(ModelLoadError, match=r"model\.safetensors is not a safetensors file"):
            load_model(ModelSpec(id=str(folder)))

    @pytest.mark.parametrize(
        ("weight_map", "words"),
        [
            (3, "weight_map is not an object"),
            ({}, "weight_map is not an object"),
            ({"a": 7}, r"weight_map\.a is 7, not the name of a file"),
            ({"a": "gone.safetensors"}, r"names gone\.safetensors, which is not there"),
        ],
    )
    def test_indexes(self, weight_map: Any, words: str, folder: Path, texts: Path) -> None:
        (folder / "model.safetensors").unlink()
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
        with pytest.raises(ModelLoadError, match=words):
            check_possible(parse_spec(job(str(folder), texts)))

    def test_none_at_all(self, folder: Path, texts: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelLoadError, match="holds a configuration and no weights"):
            check_possible(parse_spec(job(str(folder), texts)))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"num_hidden_layers": 900}, "num_hidden_layers is 900"), ({"vocab_size": 2**24}, "vocab_size is 16777216")],
    )
    def test_fewer_than_the_configuration_says(
        self, changes: dict[str, Any], words: str, folder: Path, texts: Path
    ) -> None:
        changed(folder, **changes)
        with pytest.raises(ModelLoadError, match=words):
            check_possible(parse_spec(job(str(folder), texts)))

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("generation_config.json", {"cache_implementation": 3}, r"generation_config\.json has a value"),
            ("generation_config.json", [], r"generation_config\.json holds a list"),
            ("tokenizer_config.json", {"bos_token": 3}, r"tokenizer_config\.json: bos_token is 3, not a text"),
            ("special_tokens_map.json", {"eos_token": [1]}, r"special_tokens_map\.json: eos_token is a list"),
            ("added_tokens.json", {"<x>": 2**70}, r"added_tokens\.json: <x> is a number above 2\^53"),
        ],
    )
    def test_companions(self, name: str, content: Any, words: str, folder: Path, texts: Path) -> None:
        write_json(folder / name, content)
        with pytest.raises(ModelLoadError, match=words):
            check_possible(parse_spec(job(str(folder), texts)))


class TestSuppliedCheckpoints:
    def test_nothing_is_built_to_compare(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def built(*values: Any, **keywords: Any) -> None:
            raise AssertionError("a model was built")

        monkeypatch.setattr(torch.nn.Module, "__init__", built)
        folder = tuned_without_torch(tmp_path / "tuned", checkpoint)
        assert check_checkpoint(awaiting(checkpoint), folder).id == str(folder)
        configured(folder, num_hidden_layers=1000, intermediate_size=2**20)
        with pytest.raises(UnsupportedModelError, match=r"is 1048576, not 96, and 1 other values differ"):
            check_checkpoint(awaiting(checkpoint), folder)

    def test_damaged_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        folder = tuned(tmp_path / "tuned", checkpoint)
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(ModelLoadError, match="is not a safetensors file"):
            check_checkpoint(awaiting(checkpoint), folder)


def tuned_without_torch(folder: Path, checkpoint: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder))


class TestGguf:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("block_count", 10**6),
            ("attention.key_length", 2**31),
            ("rope.dimension_count", 2**31),
            ("embedding_length", 2**31),
        ],
    )
    def test_sizes(self, key: str, value: int, tmp_path: Path) -> None:
        header = read_header(file_of(tmp_path))
        entry = Entry(UINT32, value, struct.pack("<II", UINT32, value))
        file = tmp_path / "large.gguf"
        metadata = {**header.metadata, f"llama.{key}": entry}
        write_gguf(type(header)(header.file, header.version, metadata, header.tensors), file)
        with pytest.raises(ModelLoadError, match=rf"llama\.{key} is {value}, not a whole number up to"):
            load_config(ModelSpec(id=str(file)))

    @pytest.mark.parametrize("inner", [UINT32, STRING])
    def test_arrays_of_sparse_files(self, inner: int, tmp_path: Path) -> None:
        """A hole in a file costs nothing, and would become gigabytes of numbers."""
        file = tmp_path / "sparse.gguf"
        key = b"a.b"
        beginning = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
        with file.open("wb") as stream:
            stream.write(beginning + struct.pack("<IIQ", ARRAY, inner, 2**28))
            stream.truncate(2**32)
        with pytest.raises(ModelLoadError, match="an array of 268435456 values"):
            read_header(file)


class TestScaledLengths:
    def test_yarn_without_the_original_length_is_noted(
        self, tmp_path: Path, client: TestClient, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
        folder = save_checkpoint(tiny_model("llama", vocab_size=257, rope_parameters=rope), tmp_path / "model")
        words = "max_position_embeddings, 64, is taken for the original length, before the yarn factor 4"
        assert main(["inspect", "--model", str(folder)]) == 0
        out = capsys.readouterr().out
        assert words in out
        assert "--original-length 16" in out
        answer = client.post("/v1/jobs", json=job(str(folder), texts))
        assert answer.status_code == 201, answer.text
        assert words in answer.json()["note"]
        assert '"original_length"' in answer.json()["note"]
        document = tmp_path / "job.json"
        write_json(document, job(str(folder), texts))
        assert main(["run", str(document), "--out", str(tmp_path / "out")]) == 0
        assert words in capsys.readouterr().err
        known = client.post("/v1/jobs", json=job({"id": str(folder), "original_length": 16}, texts)).json()
        assert "original length" not in known["note"]

    def test_a_plan_is_noted_too(self, tmp_path: Path, client: TestClient, texts: Path) -> None:
        rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        folder = save_checkpoint(tiny_model("llama", vocab_size=257, rope_parameters=rope), tmp_path / "model")
        data = {"files": [f"{texts}/*.txt"], "search_documents": 1, "validation_documents": 1, "held_out_documents": 1}
        plan = {"model": str(folder), "data": data, "stages": [{"kind": "search", "target_length": 128, "budget": 9}]}
        answer = client.post("/v1/plans", json=plan)
        assert answer.status_code == 201, answer.text
        assert "is taken to include the linear factor 4" in answer.json()["note"]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        st.sampled_from(["linear", "yarn"]),
        st.sampled_from([2.0, 4.0, 7.5, 40.0]),
        st.sampled_from([64, 4096, 131_072]),
        st.integers(1, 64),
        st.booleans(),
    )
    def test_no_closed_form_is_below_the_model(
        self, rope_type: str, factor: float, length: int, scale: int, given_length: bool
    ) -> None:
        rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": factor}
        config = AutoConfig.for_model("llama", **(SMALL | {"max_position_embeddings": length}), rope_parameters=rope)
        geometry = read_geometry(config, length if given_length else None)
        forms = closed_forms(geometry, scale * geometry.original_length)
        own = forms["as-configured"].rescale_factors
        assert set(forms) == {*METHODS, "as-configured"}
        for name in METHODS.keys() - {"none"}:
            assert all(one >= other for one, other in zip(forms[name].rescale_factors, own, strict=True)), name

    def test_the_attention_factor_of_models_whose_softmax_has_a_part_of_it(self) -> None:
        """At the factor of the configuration, YaRN is what DeepSeek-V3 computes."""
        rope = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
        parts = {"mscale": 1.0, "mscale_all_dim": 0.5}
        config = AutoConfig.for_model("deepseek_v3", max_position_embeddings=163_840, rope_scaling=rope | parts)
        forms = closed_forms(read_geometry(config), 163_840)
        assert forms["yarn"].attention_factor == pytest.approx(forms["as-configured"].attention_factor, rel=1e-9)
        assert forms["yarn"].attention_factor != pytest.approx(1.3689, rel=1e-2)


class TestFactorsFiles:
    @pytest.mark.parametrize(
        ("key", "value"),
        [("target_length", 10**400), ("initial_tokens", 10**400), ("original_length", 10**400), ("rotary_dim", 2**63)],
    )
    def test_numbers_beyond_all_formulas(self, key: str, value: int, checkpoint: Path) -> None:
        document = json.loads(json.dumps(awaiting(checkpoint).factors))
        (document if key in document else document["model"])[key] = value
        with pytest.raises(FactorsError, match=key):
            parse_factors({name: item for name, item in document.items() if name != "sha256"})

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        file = tmp_path / "factors.json"
        with file.open("wb") as stream:
            stream.truncate(2**34)
        with pytest.raises(FactorsError, match="is larger than 16 MiB"):
            read_factors(file)


@pytest.mark.filterwarnings("ignore")  # of libraries, about the values that were put in
def test_a_share_of_the_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m bench.mutations`` tries a thousand, in processes that are watched."""
    make_materials(tmp_path / "materials")
    answering = {"api": submit(tmp_path), "load": load(tmp_path)}
    kinds = set()
    for number in range(len(KINDS)):
        place = tmp_path / f"case-{number}"
        place.mkdir()
        case = Mutation(tmp_path / "materials", place, 7, number)
        kinds.add(case.kind)
        for name, answer in answering.items():
            fault, message = answer(case.document)
            assert fault is None, (number, name, case.what, message)
    assert kinds == set(WRITERS)


def test_mutations_are_repeatable(tmp_path: Path) -> None:
    make_materials(tmp_path / "materials")
    contents = []
    for name in ("one", "other"):
        place = tmp_path / name
        place.mkdir()
        case = Mutation(tmp_path / "materials", place, 3, 14)
        contents.append((case.what, Path(case.model, "config.json").read_bytes()))
    assert contents[0] == contents[1]
