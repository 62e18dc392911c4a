"""Exports factors as a model folder for TensorRT-LLM.

Read in TensorRT-LLM, main of November 2026 (commit 000a01de66f0) and the release 1.2:

* ``tensorrt_llm/_torch/attention_backend/interface.py``, ``RopeParams.from_config``: reads ``rope_theta``,
  ``rope_scaling`` and the original length, at the top level first; without one it becomes 1,024.
* ``tensorrt_llm/functional.py``, ``RopeEmbeddingUtils``: multiplies cos and sin by sqrt(1 + ln(m / o) / ln(o)). No
  attention factor is read. Some versions take the short list below the original length and the long one above,
  whatever the length of the input, others choose when the model is loaded; both lists are therefore the same here.
* ``tensorrt_llm/_torch/models/modeling_*.py``: which models rotate with these parameters in halves. The fused kernel
  of qwen3 knows YaRN only, and qwen2 looks its type of RoPE up by a name that has no entry for longrope.
"""

from pathlib import Path
from typing import Any

from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.huggingface import initial_tokens_limit
from factor_search.export.lengths import REPORTED, Lengths
from factor_search.export.limits import check_computes, check_configuration, switching_limit, with_attention_factor
from factor_search.export.model_folder import shell_command
from factor_search.export.own_configuration import configuration_with_lengths, write_own_configuration
from factor_search.spec import ModelSpec

ACCEPTED = frozenset({"llama", "mistral", "mixtral", "phi3"})
"""Types of models whose files rotate in halves, with the parameters of the configuration."""


class TensorRTLLM(Engine):
    """A model folder with the older keys and a top-level original length."""

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    writes = "a model folder for TensorRT-LLM, or config.json alone"
    document_name = "config.json"

    def check(self, source: Source) -> None:
        """Longrope must be computed for the type of model."""
        check_configuration(source, self.title)
        check_computes(source, "TensorRT-LLM 1.2", ACCEPTED)

    def limits(self, source: Source) -> list[Limit]:
        """Initial tokens, factors that switch, and an attention factor other than the formula's."""
        limits = switching_limit(source, "versions of TensorRT-LLM differ in where they switch")
        limits += initial_tokens_limit(source, self.title)
        value, formula = source.file.attention_factor, _lengths(source).attention_factor
        if abs(value / formula - 1) > REPORTED:
            reason = f"the attention factor is {value:g}, and TensorRT-LLM always computes the formula's"
            limits.append(Limit(reason, f"the formula's, {formula:g}", with_attention_factor(formula)))
        return limits

    def document(self, source: Source) -> dict[str, Any]:
        """The configuration."""
        return configuration_with_lengths(source, _lengths(source))

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Serves the model in the folder."""
        return shell_command("trtllm-serve", out, "--max_seq_len", target_length)

    def write(self, source: Source, out: Path) -> Exported:
        """The configuration with all other files of the checkpoint."""
        files = write_own_configuration(source, self.document(source), out)
        command = self.load_command(source.model, source.file.target_length, out)
        note = "The formula was read in the source of TensorRT-LLM; it was not run."
        return Exported(files, command if out.suffix != ".json" else None, [note])


def _lengths(source: Source) -> Lengths:
    return Lengths(source.file.target_length, source.file.model.original_length)
