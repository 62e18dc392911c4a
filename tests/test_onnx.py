"""ONNX Runtime GenAI computes what transformers computes with factors injected, initial tokens included."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from factor_search.errors import ExportError, OutputError, VerificationError
from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.export.verification.onnx import ONNXScorer
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnx_ir", reason="onnx_ir is not installed")
pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

LENGTH, TARGET = 200, 256  # the original length is 64
POSITIONS = range(1, LENGTH, 5)


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the builder of ONNX Runtime GenAI makes of the checkpoint."""
    folder = tmp_path_factory.mktemp("onnx")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", folder / "built"]
    subprocess.run([*builder, "-p", "fp32", "-e", "cpu", "-c", folder / "cache"], check=True, capture_output=True)
    return folder / "built"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 257, (1, LENGTH), generator=torch.Generator().manual_seed(4))


def found_for(model: PreTrainedModel, initial_tokens: int = 0, attention_factor: float = 1.17) -> FactorsFile:
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], initial_tokens, attention_factor)
    return factors_file(factors, FactorsModel.of("m", None, geometry), TARGET)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, factors: Factors | None) -> list[float]:
    with Injector(model, read_geometry(model.config)) as injector, injector.using([factors] if factors else []):
        logits = model(input_ids=ids()).logits[0].double().log_softmax(-1)
    return [logits[position - 1, ids()[0, position]].item() for position in POSITIONS]


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def scored(folder: Path) -> list[float]:
    return ONNXScorer().log_probabilities(folder, ids()[0].tolist(), POSITIONS)


@pytest.mark.parametrize(("initial_tokens", "attention_factor"), [(0, 1.17), (16, 1.17), (16, 0.9)])
def test_onnx_computes_with_the_factors(
    initial_tokens: int, attention_factor: float, built: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    file = found_for(model, initial_tokens, attention_factor)
    export("onnx", Source(file, ModelSpec(id=str(built))), tmp_path / "out")
    theirs = scored(tmp_path / "out")
    assert largest_difference(theirs, log_probabilities(model, file.factors)) <= 1e-3
    assert largest_difference(theirs, log_probabilities(model, None)) > 0.5
    if initial_tokens:
        without = Factors.of(file.rescale_factors, 0, attention_factor)
        assert largest_difference(theirs, log_probabilities(model, without)) > 0.05
    assert ONNXScorer().exact(tmp_path / "out")


def test_everything_else_stays(built: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in built.iterdir()}
    exported = export("onnx", Source(found_for(model), ModelSpec(id=str(built))), tmp_path / "out")
    after = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert {file.name for file in exported.files} == set(after) == set(before) | {"rotary_tables.data"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.onnx", "genai_config.json"}
    assert {file.name: file.read_bytes() for file in built.iterdir()} == before
    old, new = (json.loads(content["genai_config.json"]) for content in (before, after))
    assert (new["model"]["context_length"], new["search"]["max_length"]) == (TARGET, TARGET)
    old["model"]["context_length"] = old["search"]["max_length"] = TARGET
    assert new == old
    assert "max_length is 256" in exported.notes[0]
    with pytest.raises(OutputError, match="is not empty"):
        export("onnx", Source(found_for(model), ModelSpec(id=str(built))), tmp_path / "out")


def test_folders_that_do_not_fit_are_refused(built: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    file = found_for(model)
    export("onnx", Source(file, ModelSpec(id=str(built))), tmp_path / "out")
    other_theta = file.model_copy(update={"model": file.model.model_copy(update={"rope_theta": 5e5})})
    geometry = file.model.model_copy(update={"rotary_dim": 32})
    wider = factors_file(Factors.of([1.1] * 16), geometry, TARGET)
    for factors, folder, reason in (
        (
            file,
            tmp_path,
            "it has no genai_config.json: build one with 'python -m onnxruntime_genai.models.builder -m m",
        ),
        (file, tmp_path / "out", "has factors already: give the folder as the builder made it"),
        (other_theta, built, "do not rotate with the rope_theta of m"),
        (wider, built, r"have the shape \(64, 8\), but factors for m need 16 columns"),
    ):
        with pytest.raises(ExportError, match=reason):
            export("onnx", Source(factors, ModelSpec(id=str(folder))), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def folder_with(nodes: list[object], initializers: list[object], folder: Path) -> Path:
    """A folder with a model that is not a language model, but rotates ``x`` at ``positions``."""
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length", 16])
    positions = helper.make_tensor_value_info("positions", TensorProto.INT64, [1, "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length", 16])
    graph = helper.make_graph(nodes, "rotation", [x, positions], [y], initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), str(folder / "model.onnx"))
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    return folder


def rotation(name: str = "", source: str = "x", result: str = "y") -> object:
    from onnx import helper

    inputs = [source, "positions", f"cos{name}", f"sin{name}"]
    return helper.make_node("RotaryEmbedding", inputs, [result], domain="com.microsoft")


def tables(positions: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    angles = np.arange(positions)[:, None] * 10_000.0 ** -(np.arange(0, 16, 2) / 16) / scale
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


def test_a_choice_between_two_tables_becomes_one_table(model: PreTrainedModel, tmp_path: Path) -> None:
    import onnxruntime
    from onnx import helper, numpy_helper

    branches = []
    for name, table in (("then", tables(TARGET, 2.0)), ("else", tables(64))):
        constants = [
            helper.make_node("Constant", [], [f"{key}_{name}"], value=numpy_helper.from_array(value))
            for key, value in table.items()
        ]
        outputs = [helper.make_tensor_value_info(f"{key}_{name}", onnx.TensorProto.FLOAT, None) for key in table]
        branches.append(helper.make_graph(constants, name, [], outputs))
    long = numpy_helper.from_array(np.array(True), "long")
    choice = helper.make_node("If", ["long"], ["cos", "sin"], then_branch=branches[0], else_branch=branches[1])
    folder = folder_with([choice, rotation()], [long], tmp_path / "two")
    file = found_for(model, initial_tokens=16)
    longrope = file.model_copy(update={"model": file.model.model_copy(update={"base_rope_type": "longrope"})})
    export("onnx", Source(longrope, ModelSpec(id=str(folder))), tmp_path / "out")

    x = np.random.default_rng(0).normal(size=(1, TARGET, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (rotated,) = session.run(None, {"x": x, "positions": np.arange(TARGET)[None]})
    lambdas = np.array(file.rescale_factors)
    angles = np.arange(TARGET)[:, None] * 10_000.0 ** -(np.arange(0, 16, 2) / 16) / lambdas
    cos, sin = 1.17 * np.cos(angles), 1.17 * np.sin(angles)
    kept = tables(16, 2.0)  # what long inputs had
    cos[:16], sin[:16] = kept["cos"], kept["sin"]
    one, two = x[0, :, :8], x[0, :, 8:]
    expected = np.concatenate([one * cos - two * sin, one * sin + two * cos], axis=1)
    np.testing.assert_allclose(rotated[0], expected, atol=1e-4)


def test_models_without_one_pair_of_tables_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    values = [numpy_helper.from_array(value, name) for name, value in tables(64).items()]
    local = [numpy_helper.from_array(value, f"{name}_local") for name, value in tables(64).items()]
    none = folder_with([helper.make_node("Identity", ["x"], ["y"])], [], tmp_path / "none")
    several = folder_with([rotation("", "x", "z"), rotation("_local", "z")], values + local, tmp_path / "several")
    computed = [helper.make_node("Cos", ["angles"], ["cos"]), helper.make_node("Sin", ["angles"], ["sin"]), rotation()]
    angles = numpy_helper.from_array(np.ones((64, 8), dtype=np.float32), "angles")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "genai_config.json").write_text('{"model": {}}')
    lost = folder_with([rotation()], values, tmp_path / "lost")
    model_file = onnx.load(str(lost / "model.onnx"))
    onnx.save(model_file, str(lost / "model.onnx"), save_as_external_data=True, location="x.data", size_threshold=0)
    (lost / "x.data").unlink()
    garbage = folder_with([rotation()], values, tmp_path / "garbage")
    (garbage / "model.onnx").write_bytes(b"not a model")
    for folder, reason in (
        (none, "has no cos and sin tables"),
        (several, "has 2 pairs of cos and sin tables"),
        (folder_with(computed, [angles], tmp_path / "computed"), "has no table for cos, but computes it"),
        (broken, "names no model.decoder.filename that exists"),
        (garbage, "cannot read"),
        (lost, "cannot read cos of"),
    ):
        with pytest.raises(ExportError, match=reason) as caught:
            export("onnx", Source(found_for(model), ModelSpec(id=str(folder))), tmp_path / "new")
        assert "\n" not in str(caught.value)


def with_values_beside(folder: Path) -> Path:
    """The same folder with all values of its model in ``x.data``."""
    model = onnx.load(str(folder / "model.onnx"))
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="x.data", size_threshold=0)
    return folder


def test_a_model_in_a_subfolder_gets_its_tables_there(model: PreTrainedModel, tmp_path: Path) -> None:
    from onnx import numpy_helper

    values = [numpy_helper.from_array(value, name) for name, value in tables(64).items()]
    folder = tmp_path / "whole"
    folder.mkdir()
    with_values_beside(folder_with([rotation()], values, folder / "cpu"))
    (folder / "cpu" / "genai_config.json").rename(folder / "genai_config.json")
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "cpu/model.onnx"}}}')
    exported = export("onnx", Source(found_for(model), ModelSpec(id=str(folder))), tmp_path / "out")
    names = {file.relative_to(tmp_path / "out").as_posix() for file in exported.files}
    assert names == {"genai_config.json", "cpu/model.onnx", "cpu/x.data", "cpu/rotary_tables.data"}
    written = onnx.load(str(tmp_path / "out" / "cpu" / "model.onnx"))
    cos = next(numpy_helper.to_array(tensor) for tensor in written.graph.initializer if tensor.name == "cos")
    lambdas = np.array(found_for(model).rescale_factors)
    np.testing.assert_allclose(cos[1], 1.17 * np.cos(10_000.0 ** -(np.arange(0, 16, 2) / 16) / lambdas), rtol=1e-5)
    with pytest.raises(ExportError, match="has factors already"):
        export("onnx", Source(found_for(model), ModelSpec(id=str(tmp_path / "out"))), tmp_path / "new")


def test_onnx_computes_with_the_factors_of_a_subfolder(built: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(built, folder)
    (folder / "cpu").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / "cpu" / name)
    settings = json.loads((folder / "genai_config.json").read_text())
    settings["model"]["decoder"]["filename"] = "cpu/model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(settings))
    file = found_for(model, initial_tokens=16)
    export("onnx", Source(file, ModelSpec(id=str(folder))), tmp_path / "out")
    assert largest_difference(scored(tmp_path / "out"), log_probabilities(model, file.factors)) <= 1e-3


@pytest.mark.parametrize("way", ["absolute", "above", "link"])
@pytest.mark.parametrize("named", ["model", "values", "values of a branch"])
def test_files_outside_the_folder_are_refused(named: str, way: str, model: PreTrainedModel, tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    values = [numpy_helper.from_array(value, name) for name, value in tables(64).items()]
    nodes = [rotation()]
    if named == "values of a branch":
        constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, dtype=np.float32)))
        output = helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)
        branch = helper.make_graph([constant], "branch", [], [output])
        values.append(numpy_helper.from_array(np.array(True), "long"))
        nodes.append(helper.make_node("If", ["long"], ["z"], then_branch=branch, else_branch=branch))
    folder = folder_with(nodes, values, tmp_path / "folder")
    name = "model.onnx" if named == "model" else "secret.data"
    outside = tmp_path / name
    if named == "model":
        (folder / name).rename(outside)
    else:
        outside.write_bytes(bytes(64 * 8 * 4))
    location = {"absolute": str(outside), "above": f"../{name}", "link": name}[way]
    if way == "link":
        (folder / name).symlink_to(outside)
    if named == "model":
        (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": location}}}))
    else:
        changed = onnx.load(str(folder / "model.onnx"))
        branch_value = changed.graph.node[-1].attribute[0].g.node[0].attribute[0].t if len(nodes) > 1 else None
        tensor = changed.graph.initializer[0] if branch_value is None else branch_value
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / "model.onnx").write_bytes(changed.SerializeToString())
    with pytest.raises(ExportError, match=r"which is not inside .*: give a folder that contains all files") as caught:
        export("onnx", Source(found_for(model), ModelSpec(id=str(folder))), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_tables_keep_their_precision(model: PreTrainedModel, tmp_path: Path) -> None:
    from onnx import numpy_helper

    halves = [numpy_helper.from_array(value.astype(np.float16), name) for name, value in tables(64).items()]
    folder = folder_with([rotation()], halves, tmp_path / "half")
    export("onnx", Source(found_for(model), ModelSpec(id=str(folder))), tmp_path / "out")
    written = onnx.load(str(tmp_path / "out" / "model.onnx"))
    cos, sin = (numpy_helper.to_array(tensor) for tensor in written.graph.initializer)
    assert (cos.dtype, sin.shape) == (np.float16, (TARGET, 8))
    np.testing.assert_allclose(cos[0], 1.17, rtol=1e-3)


def test_without_the_package_the_message_names_it(
    built: Path, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(ExportError, match=r"pip install 'factor-search\[onnx\]'"):
        export("onnx", Source(found_for(model), ModelSpec(id=str(built))), tmp_path / "out")
    with pytest.raises(VerificationError, match="pip install onnxruntime-genai"):
        scored(built)


def test_what_cannot_be_scored_is_said_in_one_line(built: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, built):  # no model, and a model whose context is too short
        with pytest.raises(VerificationError, match="ONNX Runtime GenAI cannot run") as caught:
            scored(folder)
        assert "\n" not in str(caught.value)
    assert ONNXScorer().version()
