"""Scores text with transformers, in a process of its own that knows nothing of factors."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from factor_search.errors import VerificationError
from factor_search.export.verification.contract import Scorer
from factor_search.spec import ModelSpec

SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM

folder, trust_remote_code, ids, positions = json.load(sys.stdin)
options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
with torch.inference_mode():
    at = torch.tensor(positions) - 1
    logits = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=at).logits[0].double()
logits = logits if len(logits) == len(at) else logits[at]
chosen = torch.log_softmax(logits, -1)[torch.arange(len(at)), torch.tensor(ids)[at + 1]]
json.dump(chosen.tolist(), sys.stdout)
"""


class Transformers(Scorer):
    """Plain transformers, in float32.

    Args:
        trust_remote_code: run Python code that comes with the model.
    """

    name = "transformers"
    format = "huggingface"
    package = "transformers"

    def __init__(self, trust_remote_code: bool = False) -> None:
        self.trust_remote_code = trust_remote_code

    def of(self, model: ModelSpec) -> "Transformers":
        """The scorer that runs the code of a model if the model's specification allows that."""
        return Transformers(model.trust_remote_code)

    def version(self) -> str | None:
        """The installed version."""
        try:
            return version("transformers")
        except PackageNotFoundError:
            return None

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Load the folder in a fresh process, and score."""
        asked = json.dumps([str(exported.resolve()), self.trust_remote_code, list(ids), list(positions)])
        command = [sys.executable, "-P", "-c", SCRIPT]
        process = subprocess.run(command, input=asked, capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip() or "no message").splitlines()[-1]
            raise VerificationError(f"transformers cannot load or run {exported}: {reason}")
        scores: list[float] = json.loads(process.stdout.splitlines()[-1])
        return scores
