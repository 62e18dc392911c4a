"""Exports factors into a model folder of ONNX Runtime GenAI, by rewriting its cos and sin tables.

This is the only format that can express initial tokens: the tables have a row for each position.

Read in ONNX Runtime GenAI 0.18.0 and ONNX Runtime 1.32.0:

* ``onnxruntime_genai/models/builders/base.py``, ``make_rotary_embedding_caches``: all layers share two initialisers,
  (positions, pairs). For the longrope of Phi-3 an ``If`` chooses between two pairs of them by the length of the
  input. For the longrope of Llama the builder writes a table without factors.
* The operators ``GroupQueryAttention``, ``RotaryEmbedding`` and ``PagedAttention`` take the tables as inputs, and
  index them by position, interleaved or not; so they need no other change.
* ``genai_config.json``: ``model.context_length`` and ``search.max_length`` limit the input.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factor_search.errors import ExportError, one_line
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.limits import switching_limit
from factor_search.export.model_folder import link_or_copy, shell_command, write_folder
from factor_search.factors_file import FactorsFile
from factor_search.files.json_documents import read_json, write_json
from factor_search.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

SETTINGS = "genai_config.json"
TABLES = "rotary_tables.data"
"""The file beside the model that holds the new tables."""
_TABLE_INPUTS = {
    ("com.microsoft", "GroupQueryAttention"): (7, 8),
    ("com.microsoft", "PagedAttention"): (8, 9),
    ("com.microsoft", "RotaryEmbedding"): (2, 3),
    ("", "RotaryEmbedding"): (1, 2),
}
"""Where operators take cos and sin, by domain and name."""


class ONNX(Engine):
    """A copy of an ONNX Runtime GenAI folder, with tables that hold the factors."""

    name = "onnx"
    title = "ONNX Runtime GenAI"
    holds_initial_tokens = True
    writes = "a copy of an ONNX Runtime GenAI folder with new tables"
    document_name = None
    model_name = "onnx-model"

    def check(self, source: Source) -> None:
        """The model must be an ONNX Runtime GenAI folder with one decoder and tables that fit the factors."""
        folder = Path(source.model.id)
        if not (folder / SETTINGS).is_file():
            raise ExportError(
                f"{source.model.id} is not an ONNX Runtime GenAI folder, for it has no {SETTINGS}: build one with "
                f"'python -m onnxruntime_genai.models.builder -m {source.file.model.id} -o FOLDER -p fp32 -e cpu', "
                "and give --model FOLDER"
            )
        if (_decoder(folder).parent / TABLES).exists():
            raise ExportError(f"{folder} has factors already: give the folder as the builder made it")
        _Tables.of(folder, source.file)

    def limits(self, source: Source) -> list[Limit]:
        """Factors that switch with the length of the input."""
        return switching_limit(source, "one table of ONNX Runtime GenAI serves inputs of all lengths")

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Loads the folder in ONNX Runtime GenAI."""
        load = f"onnxruntime_genai.Model({json.dumps(str(out))})"
        return shell_command("python", "-c", f"import onnxruntime_genai; {load}")

    def write(self, source: Source, out: Path) -> Exported:
        """The folder with new tables and context length; all other files are linked or copied."""
        folder, target_length = Path(source.model.id), source.file.target_length
        tables = _Tables.of(folder, source.file)
        tables.replace(source.file)

        def fill(destination: Path) -> None:
            for item in sorted(folder.rglob("*")):
                if item.is_file() and item not in (tables.file, folder / SETTINGS):
                    copy = destination / item.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(item, copy)
            tables.write(destination / tables.file.relative_to(folder))
            settings = read_json(folder / SETTINGS, ExportError, model=True)
            settings["model"]["context_length"] = target_length
            settings.setdefault("search", {})["max_length"] = target_length
            write_json(destination / SETTINGS, settings)

        note = (
            f"search.max_length is {target_length}, for which ONNX Runtime GenAI allocates its key-value cache: lower "
            f"it in {SETTINGS} where memory is short."
        )
        return Exported(write_folder(out, fill), None, [note])


class _Tables:
    """The cos and sin tables of a model."""

    def __init__(self, file: Path, model: "ModelProto", cos: str, sin: str) -> None:
        self.file, self.model, self.names = file, model, (cos, sin)
        self.old: tuple[NDArray[Any], NDArray[Any]] = (self._values(cos), self._values(sin))
        self.new: tuple[NDArray[Any], NDArray[Any]] | None = None

    @classmethod
    def of(cls, folder: Path, file: FactorsFile) -> "_Tables":
        """Find the tables, and check that they belong to a model of the factors' rotary geometry.

        Raises:
            ExportError: there are none, there are several, they do not fit the factors, or the model names files
                outside the folder.
        """
        try:
            import onnx
        except ImportError:
            raise ExportError("export to ONNX needs the package onnx: pip install 'factor-search[onnx]'") from None
        path = _decoder(folder)
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:
            raise ExportError(f"cannot read {path}: {one_line(error)}") from None
        for location in {
            entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"
        }:
            _inside(folder, path.parent, location, path)
        found = _table_names(model.graph)
        if len(found) != 1:
            what = f"{len(found)} pairs of cos and sin tables" if found else "no cos and sin tables"
            raise ExportError(f"{path} has {what}, and factors can be written into one: export another format")
        tables = cls(path, model, *found.pop())
        tables.check(file)
        return tables

    def check(self, file: FactorsFile) -> None:
        """Check that row 1 holds the frequencies of the model of the factors.

        Raises:
            ExportError: it does not.
        """
        cos, sin = (table.astype(np.float64) for table in self.old)
        pairs = file.model.rotary_dim // 2
        if cos.shape != sin.shape or cos.ndim != 2 or cos.shape[1] != pairs or len(cos) < max(2, file.initial_tokens):
            raise ExportError(
                f"the tables in {self.file} have the shape {cos.shape}, but factors for {file.model.id} need {pairs} "
                "columns: they belong to another model"
            )
        exponents = np.arange(0, file.model.rotary_dim, 2) / file.model.rotary_dim
        plain = file.model.rope_theta**-exponents
        if file.model.base_rope_type == "default" and not np.allclose(
            np.arctan2(sin[1], cos[1]), plain, rtol=0.02, atol=1e-3
        ):
            raise ExportError(
                f"the tables in {self.file} do not rotate with the rope_theta of {file.model.id}: the factors belong "
                "to another model, or the folder was changed; give the folder as the builder made it"
            )

    def replace(self, file: FactorsFile) -> None:
        """Compute the new tables.

        Rows of initial tokens stay as they are. The order of operations is that of longrope in transformers, in
        float32.
        """
        exponents = np.arange(0, file.model.rotary_dim, 2, dtype=np.int64).astype(np.float32) / file.model.rotary_dim
        lambdas = np.array(file.rescale_factors, dtype=np.float32)
        inverse = (1.0 / (lambdas * np.float32(file.model.rope_theta) ** exponents)).astype(np.float32)
        angles = np.arange(file.target_length, dtype=np.float32)[:, None] * inverse  # (positions, pairs)
        scale = np.float32(file.attention_factor)
        new = tuple((function(angles) * scale).astype(self.old[0].dtype) for function in (np.cos, np.sin))
        for table, old in zip(new, self.old, strict=True):
            table[: file.initial_tokens] = old[: file.initial_tokens]
        self.new = (new[0], new[1])

    def write(self, file: Path) -> None:
        """Write the model with the new tables, which stand in a file beside it: a model is at most 2 GiB."""
        from onnx import save

        assert self.new is not None
        graph = self.model.graph
        for node in [node for node in graph.node if set(self.names) & set(node.output)]:
            graph.node.remove(node)  # the If that chose between tables
        for initializer in [tensor for tensor in graph.initializer if tensor.name in self.names]:
            graph.initializer.remove(initializer)
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / TABLES).open("wb") as stream:
            for name, table in zip(self.names, self.new, strict=True):
                content = table.tobytes()
                graph.initializer.append(_external(name, table, stream.tell(), len(content)))
                stream.write(content)
        save(self.model, str(file))

    def _values(self, name: str) -> NDArray[Any]:
        """The values of a table; of the one for long inputs, where an If chooses between two."""
        from onnx.numpy_helper import to_array

        tensor = _tensor(self.model.graph, name, self.file)
        try:
            values: NDArray[Any] = to_array(tensor, str(self.file.parent))
        except Exception as error:  # the file beside the model is absent or too short
            raise ExportError(f"cannot read {name} of {self.file}: {one_line(error)}") from None
        return values


def _decoder(folder: Path) -> Path:
    """The file of the decoder in a folder.

    Raises:
        ExportError: the settings do not name one, it is not there, or it is outside the folder.
    """
    settings = read_json(folder / SETTINGS, ExportError, model=True)
    try:
        name = settings["model"]["decoder"]["filename"]
    except (KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not (folder / name).is_file():
        raise ExportError(f"{folder / SETTINGS} names no model.decoder.filename that exists: build the folder again")
    return _inside(folder, folder, name, folder / SETTINGS)


def _inside(folder: Path, base: Path, name: str, named_by: Path) -> Path:
    """The file of a name relative to ``base``.

    Raises:
        ExportError: it is outside the folder, so a copy of the folder would not contain it.
    """
    file = base / name
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, or no name of a file
        inside = False
    if not inside or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ExportError(
            f"{named_by} names the file {name!r}, which is not inside {folder}: give a folder that contains all files "
            "of the model"
        )
    return file


def _tensors(model: "ModelProto") -> "Iterator[TensorProto]":
    """All tensors of a model, those of nested graphs and functions included."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: "GraphProto") -> "Iterator[TensorProto]":
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: "Iterable[NodeProto]") -> "Iterator[TensorProto]":
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of_graph(graph)


def _table_names(graph: "GraphProto") -> set[tuple[str, str]]:
    """The names of cos and sin that operators take; more than one pair if operators use different tables."""
    return {
        (node.input[cos], node.input[sin])
        for node in graph.node
        for cos, sin in [_TABLE_INPUTS.get((node.domain, node.op_type), (0, 0))]
        if cos and len(node.input) > sin and node.input[cos] and node.input[sin]
    }


def _tensor(graph: "GraphProto", name: str, file: Path) -> "TensorProto":
    """The initialiser of a name, or the constant that an If returns under it for inputs beyond the original length.

    Raises:
        ExportError: there is none: the model computes its tables.
    """
    for initializer in graph.initializer:
        if initializer.name == name:
            return initializer
    for node in graph.node:
        if node.op_type == "If" and name in node.output:
            long = next(attribute.g for attribute in node.attribute if attribute.name == "then_branch")
            wanted = long.output[list(node.output).index(name)].name
            for constant in long.node:
                if constant.op_type == "Constant" and wanted in constant.output:
                    return constant.attribute[0].t
    raise ExportError(f"{file} has no table for {name}, but computes it: export another format")


def _external(name: str, table: NDArray[Any], offset: int, length: int) -> "TensorProto":
    """An initialiser whose values stand in the file of tables."""
    from onnx import TensorProto
    from onnx.helper import np_dtype_to_tensor_dtype

    tensor = TensorProto(name=name, data_type=np_dtype_to_tensor_dtype(table.dtype), dims=table.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", TABLES), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
