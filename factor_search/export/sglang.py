"""Exports factors as the ``--json-model-override-args`` of SGLang.

Read in SGLang 0.5.23:

* ``sglang/srt/layers/rotary_embedding/rope_variant.py``, ``Phi3LongRoPEScaledRotaryEmbedding``: multiplies cos and
  sin by ``short_mscale`` or ``long_mscale``. The long list is used for a whole batch if any position of it *exceeds*
  the original length L, so alone the token at position L is read from row 0 of the long table. With the original
  length set to the target no position does, and the short list serves all: it holds the factors. Interleaved rotation
  raises.
* ``sglang/srt/utils/hf_transformers/config.py``: overrides are merged into ``rope_parameters`` and ``text_config``.
* ``sglang/srt/models/*.py``: which models pass the scaling on. Some ignore it (mixtral, gemma, gemma2, olmo,
  starcoder2, phi, stablelm, granitemoe), and the fused kernel of qwen3_moe takes any scaling for YaRN. ``llama.py``
  lets a top-level original length override the one in the scaling.
"""

import json
from pathlib import Path
from typing import Any

from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.huggingface import huggingface_config, initial_tokens_limit
from factor_search.export.limits import check_computes, check_configuration, check_no_image_axes, switching_limit
from factor_search.export.model_folder import content_of, loading_options, shell_command, write_document
from factor_search.spec import ModelSpec

ACCEPTED = frozenset(
    {
        "apertus",
        "arcee",
        "glm4_moe",
        "granite",
        "llama",
        "minicpm3",
        "mistral",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
    }
)
"""Types of models whose files pass the whole scaling to a rotation in halves."""


class SGLang(Engine):
    """The overrides of the configuration, and the command that serves the model with them."""

    name = "sglang"
    title = "SGLang"
    writes = "the JSON of --json-model-override-args, and prints the command"
    document_name = "sglang.json"
    out_name = "sglang.json"

    def check(self, source: Source) -> None:
        """Longrope must be computed for the type of model."""
        check_configuration(source, self.title)
        check_no_image_axes(source, self.title)
        check_computes(source, "SGLang 0.5.23", ACCEPTED)

    def limits(self, source: Source) -> list[Limit]:
        """Initial tokens, and factors that switch with the length of the input."""
        reason = "SGLang rotates the token at the original length as if it were the first, when it switches"
        return [*switching_limit(source, reason), *initial_tokens_limit(source, self.title)]

    def document(self, source: Source) -> dict[str, Any]:
        """What replaces keys of the configuration."""
        content = huggingface_config(source.file, source.config, source.short)
        window = content["max_position_embeddings"]
        return {
            "max_position_embeddings": window,
            "original_max_position_embeddings": window,
            "rope_parameters": content["rope_parameters"] | {"original_max_position_embeddings": window},
        }

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Serves the model with the overrides from their file."""
        return _serve(model, target_length, content_of(out))

    def write(self, source: Source, out: Path) -> Exported:
        """The overrides, as a file to keep; the command contains them."""
        overrides = self.document(source)
        file = write_document(overrides, out, self.document_name)
        compact = json.dumps(overrides, separators=(",", ":"))
        note = "The original length in the overrides is the target length on purpose: so SGLang never switches lists."
        command = _serve(source.model, source.file.target_length, shell_command(compact))
        return Exported([file], command, [note])


def _serve(model: ModelSpec, target_length: int, overrides: str) -> str:
    """The command with the overrides as a word for a shell."""
    serve = shell_command("python", "-m", "sglang.launch_server", "--model-path", model.id)
    length = shell_command("--context-length", target_length, *loading_options(model))
    return f"{serve} --json-model-override-args {overrides} {length}"
