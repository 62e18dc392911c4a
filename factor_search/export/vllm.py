"""Exports factors as the ``--hf-overrides`` of vLLM.

Read in vLLM 0.32.0:

* ``vllm/model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py``: multiplies cos and sin by
  ``short_mscale`` or ``long_mscale``, and by LongRoPE's formula without them; ``attention_factor`` is not read. One
  list is chosen when the server starts, the long one if ``--max-model-len`` exceeds the original length. Interleaved
  rotation raises.
* ``vllm/config/model.py``, ``_get_and_verify_max_len``: a top-level ``original_max_position_embeddings`` becomes the
  default window, and ``--max-model-len`` may not exceed ``max_position_embeddings``. Overrides that are dictionaries
  replace a dictionary of the configuration, and are merged into a configuration such as ``text_config``.
* ``vllm/model_executor/models/*.py``: which models rotate interleaved (``is_neox_style=False``), and which compose
  RoPE parameters of their own. A model without a file there runs with transformers' own RoPE.
"""

import json
from pathlib import Path
from typing import Any

from factor_search.errors import ExportError
from factor_search.export.configuration import text_part
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.huggingface import huggingface_config, initial_tokens_limit
from factor_search.export.limits import check_configuration, check_no_image_axes, switching_limit
from factor_search.export.model_folder import content_of, loading_options, shell_command, write_document
from factor_search.spec import ModelSpec

INTERLEAVED = frozenset(
    {
        "axk1",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "ernie4_5",
        "ernie4_5_moe",
        "ernie4_5_vl_moe",
        "glm4",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gptj",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "mistral4",
    }
)
"""Types of models with interleaved rotation, for which the longrope of vLLM raises."""
OWN_PARAMETERS = frozenset({"dbrx", "gpt_oss", "laguna", "mimo_v2_flash"})
"""Types of models whose files compose RoPE parameters themselves, without the lists."""


class VLLM(Engine):
    """The overrides of the configuration, and the command that serves the model with them."""

    name = "vllm"
    title = "vLLM"
    writes = "the JSON of --hf-overrides, and prints the command"
    document_name = "vllm.json"
    out_name = "vllm.json"

    def check(self, source: Source) -> None:
        """Longrope must be computed for the type of model."""
        check_configuration(source, self.title)
        check_no_image_axes(source, self.title)
        kinds = {source.config.model_type, source.geometry.config.model_type}
        if kinds & INTERLEAVED:
            raise ExportError(
                f"{source.geometry.architecture} rotates neighbouring dimensions (interleaved RoPE), for which vLLM "
                "refuses longrope: export --format huggingface for transformers"
            )
        if kinds & OWN_PARAMETERS:
            raise ExportError(
                f"vLLM composes the RoPE parameters of {source.geometry.architecture} itself and ignores the factors: "
                "export --format huggingface for transformers"
            )

    def limits(self, source: Source) -> list[Limit]:
        """Initial tokens, and factors that switch with the length of the input."""
        reason = "vLLM uses the long factors for all inputs if its window exceeds the original length"
        return [*switching_limit(source, reason), *initial_tokens_limit(source, self.title)]

    def document(self, source: Source) -> dict[str, Any]:
        """What replaces keys of the configuration."""
        content = huggingface_config(source.file, source.config, source.short)
        name, text = text_part(content, source.config)
        overrides = {key: text[key] for key in ("max_position_embeddings", "rope_parameters")}
        return {name: overrides} if name else overrides

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Serves the model with the overrides from their file."""
        return _serve(model, target_length, content_of(out))

    def write(self, source: Source, out: Path) -> Exported:
        """The overrides, as a file to keep; the command contains them."""
        overrides = self.document(source)
        file = write_document(overrides, out, self.document_name)
        compact = json.dumps(overrides, separators=(",", ":"))
        note = "Without --max-model-len, vLLM may serve the original length only, and allocates for its whole window."
        command = _serve(source.model, source.file.target_length, shell_command(compact))
        return Exported([file], command, [note])


def _serve(model: ModelSpec, target_length: int, overrides: str) -> str:
    """The command with the overrides as a word for a shell."""
    serve = shell_command("vllm", "serve", model.id)
    length = shell_command("--max-model-len", target_length, *loading_options(model))
    return f"{serve} --hf-overrides {overrides} {length}"
