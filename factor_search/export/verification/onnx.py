"""Scores text with ONNX Runtime GenAI."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factor_search.errors import VerificationError, one_line
from factor_search.export.verification.contract import Scorer
from factor_search.files.json_documents import read_json


class ONNXScorer(Scorer):
    """ONNX Runtime GenAI, on the processor for which the folder was built."""

    name = "onnx"
    format = "onnx"
    package = "onnxruntime-genai"

    def version(self) -> str | None:
        """The version of the installed package; None if it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def exact(self, exported: Path) -> bool:
        """Whether the weights are float32, not float16 or packed integers; False without the package onnx."""
        try:
            from onnx import TensorProto, load
        except ImportError:
            return False
        decoder = read_json(exported / "genai_config.json", VerificationError)["model"]["decoder"]["filename"]
        graph = load(str(exported / decoder), load_external_data=False).graph
        whole = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
        return all(tensor.data_type in whole for tensor in graph.initializer)

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Append the tokens up to each position, and read the logits of the next token.

        Raises:
            VerificationError: the package is not installed, or cannot load or run the model.
        """
        try:
            import onnxruntime_genai as genai
        except ImportError:
            raise VerificationError(f"ONNX Runtime GenAI is not installed: pip install {self.package}") from None
        scores: dict[int, float] = {}
        try:
            model = genai.Model(str(exported))
            parameters = genai.GeneratorParams(model)
            parameters.set_search_options(max_length=max(positions) + 1, do_sample=False)
            generator = genai.Generator(model, parameters)
            done = 0
            for position in sorted(set(positions)):
                generator.append_tokens(list(ids[done:position]))
                done = position
                scores[position] = _log_softmax(generator.get_logits(), ids[position])
        except (RuntimeError, OSError, ValueError) as error:
            raise VerificationError(f"ONNX Runtime GenAI cannot run {exported}: {one_line(error)}") from None
        return [scores[position] for position in positions]


def _log_softmax(logits: Any, token: int) -> float:
    """The log-probability of a token from logits whose last axis is the vocabulary."""
    import numpy as np

    values = np.asarray(logits, dtype=np.float64).reshape(-1, np.shape(logits)[-1])[-1]
    values = values - values.max()
    return float(values[token] - np.log(np.exp(values).sum()))
