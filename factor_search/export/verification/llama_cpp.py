"""Scores text with llama.cpp, from the package ``xllamacpp``."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from factor_search.errors import VerificationError
from factor_search.export.verification.contract import Scorer
from factor_search.files.gguf import F32, Header, Tensor, is_gguf, read_header, write_gguf
from factor_search.spec import ModelSpec

PROCESS = Path(__file__).with_name("llama_cpp_process.py")
"""What loads the engine; a process of its own, since llama.cpp aborts its process on some files."""

LARGEST_F32 = 4 * 2**30
"""Bytes of weights as F32 that are written without being asked to."""


@dataclass(frozen=True)
class LlamaCpp(Scorer):
    """llama.cpp with a float32 key-value cache, on the CPU."""

    name = "llama.cpp"
    format = "gguf"
    package = "xllamacpp"

    threads: int = 1
    """CPU threads; results of one are the same every time."""
    as_f32: bool | None = False
    """Write the weights as F32 first, 4 bytes each, into the folder for temporary files; None does that up to
    :data:`LARGEST_F32`. With weights of other types llama.cpp rounds activations to 8 or 16 bits, which moves a
    log-probability by 0.01 to 0.1."""

    same_weights: bool = True
    """Whether transformers computes with the weights of the file as well."""

    def version(self) -> str | None:
        """The version of ``xllamacpp``, which ends in the build of llama.cpp."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def exact(self, exported: Path) -> bool:
        """Whether all weights are F32: in the file, or written so where the file is also what transformers loads."""
        header = read_header(_model(exported))
        if all(tensor.kind == F32 for tensor in header.tensors):
            return True
        return self.same_weights and self._widens(header)

    def of(self, model: ModelSpec) -> "LlamaCpp":
        """The scorer that knows whether the model is a GGUF file, or a checkpoint of which one was made."""
        return replace(self, same_weights=is_gguf(model.id))

    def _widens(self, header: Header) -> bool:
        return _f32_bytes(header) <= LARGEST_F32 if self.as_f32 is None else self.as_f32

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """See :meth:`Scorer.log_probabilities`; ``exported`` is a GGUF file, or a folder with one."""
        if self.version() is None:
            raise VerificationError(f"llama.cpp is not installed: pip install {self.package}")
        model = _model(exported)
        with tempfile.TemporaryDirectory(prefix="llama-") as folder:
            if self.as_f32 is not False and self._widens(header := read_header(model)):
                model = Path(folder, "f32.gguf")
                write_gguf(replace(header, tensors=tuple(map(_as_f32, header.tensors))), model)
            work: dict[str, Any] = {"model": str(model), "ids": list(ids), "positions": list(positions)}
            work |= {"threads": self.threads, "socket": f"{folder}/socket"}
            result = Path(folder, "result.json")
            Path(folder, "work.json").write_text(json.dumps(work))
            command = [sys.executable, "-P", str(PROCESS), f"{folder}/work.json", str(result)]
            environment = os.environ | {"GGML_NO_BACKTRACE": "1"}  # which would start a debugger
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
            answer = json.loads(result.read_text()) if result.exists() else {}
        if "log_probabilities" not in answer:
            reason = _reason(finished, answer.get("error", "it said nothing"))
            raise VerificationError(f"llama.cpp cannot score with {exported}: {reason}")
        return [float(value) for value in answer["log_probabilities"]]


@dataclass(frozen=True)
class _Dequantised(Tensor):
    """A tensor of type F32 whose data are made from one of another type when they are written."""

    of: Tensor = field(kw_only=True)

    def pieces(self) -> Iterator[bytes]:
        import gguf

        kind = gguf.GGMLQuantizationType(self.of.kind)
        data = np.frombuffer(b"".join(self.of.pieces()), np.uint8)
        yield gguf.dequantize(data.reshape(math.prod(self.shape[1:]), -1), kind).astype("<f4").tobytes()


def _f32_bytes(header: Header) -> int:
    return sum(4 * math.prod(tensor.shape) for tensor in header.tensors)


def _as_f32(tensor: Tensor) -> Tensor:
    if tensor.kind == F32:
        return tensor
    return _Dequantised(tensor.name, tensor.shape, F32, 4 * math.prod(tensor.shape), b"", of=tensor)


def _model(exported: Path) -> Path:
    if not exported.is_dir():
        return exported
    files = sorted(exported.glob("*.gguf"))
    if len(files) != 1:
        raise VerificationError(f"{exported} has {len(files)} GGUF files, not one: name the file")
    return files[0]


def _reason(finished: "subprocess.CompletedProcess[str]", error: str) -> str:
    """Why there is no result: the first error in the engine's log, or what the process said itself."""
    for line in finished.stderr.splitlines():
        if found := re.search(r"error loading model: .*|GGML_ASSERT.*|GGML_ABORT.*|failed to load model.*", line):
            error = found[0]
            break
    if finished.returncode < 0:
        error = f"it was ended by {signal.Signals(-finished.returncode).name}: {error}"
    return error[:300]
