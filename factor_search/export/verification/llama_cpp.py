"""Scores text with llama.cpp, from the package ``xllamacpp``."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from factor_search.errors import VerificationError
from factor_search.export.verification.contract import Scorer

PROCESS = Path(__file__).with_name("llama_cpp_process.py")
"""What loads the engine; a process of its own, since llama.cpp aborts its process on some files."""


@dataclass(frozen=True)
class LlamaCpp(Scorer):
    """llama.cpp with a float32 key-value cache, on the CPU."""

    name = "llama.cpp"
    format = "gguf"
    package = "xllamacpp"

    threads: int = 1
    """CPU threads; results of one are the same every time."""

    def version(self) -> str | None:
        """The version of ``xllamacpp``, which ends in the build of llama.cpp."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """See :meth:`Scorer.log_probabilities`; ``exported`` is a GGUF file, or a folder with one."""
        if self.version() is None:
            raise VerificationError(f"llama.cpp is not installed: pip install {self.package}")
        with tempfile.TemporaryDirectory(prefix="llama-") as folder:
            work = {"model": str(_model(exported)), "ids": list(ids), "positions": list(positions)}
            work |= {"threads": self.threads, "socket": f"{folder}/socket"}
            result = Path(folder, "result.json")
            Path(folder, "work.json").write_text(json.dumps(work))
            command = [sys.executable, "-P", str(PROCESS), f"{folder}/work.json", str(result)]
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
            answer = json.loads(result.read_text()) if result.exists() else {"error": _ending(finished)}
        if "error" in answer:
            raise VerificationError(f"llama.cpp cannot score with {exported}: {answer['error']}")
        return [float(value) for value in answer["log_probabilities"]]


def _model(exported: Path) -> Path:
    if not exported.is_dir():
        return exported
    files = sorted(exported.glob("*.gguf"))
    if len(files) != 1:
        raise VerificationError(f"{exported} has {len(files)} GGUF files, not one: name the file")
    return files[0]


def _ending(finished: "subprocess.CompletedProcess[str]") -> str:
    """Why a process ended without a result."""
    lines = [line.strip() for line in (finished.stderr + finished.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    reason = (telling or lines or ["it said nothing"])[-1]
    if finished.returncode < 0:
        return f"it was ended by {signal.Signals(-finished.returncode).name}: {reason[:300]}"
    return reason[:300]
