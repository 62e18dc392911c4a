"""Exports factors as a model folder for MLX.

Read in mlx-lm 0.32.2:

* ``mlx_lm/models/rope_utils.py``, ``initialize_rope``: passes the two lists and the two lengths of ``rope_scaling``
  on, but no attention factor. ``SuScaledRoPE`` uses the long list for all inputs, and multiplies cos and sin by
  sqrt(1 + ln(m / o) / ln(o)); see :mod:`factor_search.export.lengths`. It always rotates halves, also for models that
  rotate neighbouring dimensions (``traditional``), which are therefore refused.
* ``mlx_lm/models/llama.py``, ``qwen2.py`` and others read ``rope_theta`` and ``rope_scaling`` only, so they compute a
  configuration with ``rope_parameters`` alone as if it had no scaling. ``phi3.py`` reads the original length at the
  top level, and ``gemma3_text.py`` only keys of before transformers 5. ``gemma2.py``, ``mixtral.py``,
  ``qwen3_moe.py``, ``cohere2.py``, ``glm4.py`` and others ignore or refuse it.
"""

from pathlib import Path
from typing import Any

from factor_search.export.configuration import text_part
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.huggingface import initial_tokens_limit
from factor_search.export.limits import attention_factor_limit, check_computes, check_configuration, switching_limit
from factor_search.export.model_folder import shell_command
from factor_search.export.own_configuration import (
    configuration_with_lengths,
    lengths_of,
    notes_on_lengths,
    write_own_configuration,
)
from factor_search.spec import ModelSpec

ACCEPTED = frozenset(
    {
        "apertus",
        "dots1",
        "gemma3",
        "gemma3_text",
        "granite",
        "granitemoe",
        "llama",
        "mistral",
        "mistral3",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
    }
)
"""Types of models that compute the same as transformers; ``tests/test_mlx.py`` runs each of them."""


class MLX(Engine):
    """A model folder whose lengths express the attention factor."""

    name = "mlx"
    title = "MLX"
    writes = "a model folder for mlx-lm, or config.json alone"
    document_name = "config.json"

    def check(self, source: Source) -> None:
        """Longrope must be computed for the type of model."""
        check_configuration(source, self.title)
        check_computes(source, "mlx-lm 0.32", ACCEPTED)

    def limits(self, source: Source) -> list[Limit]:
        """Initial tokens, factors that switch, and an attention factor below 1."""
        return [
            *switching_limit(source, "MLX uses the long factors for all inputs"),
            *initial_tokens_limit(source, self.title),
            *attention_factor_limit(source, self.title),
        ]

    def document(self, source: Source) -> dict[str, Any]:
        """The configuration."""
        content = configuration_with_lengths(source, lengths_of(source))
        name, text = text_part(content, source.config)
        if name is not None:  # gemma3.py takes a default of its own otherwise
            content["vocab_size"] = text["vocab_size"]
        if source.geometry.layer_type is not None:  # gemma3_text.py reads the other layers' RoPE and their order so
            text["sliding_window_pattern"] = text["layer_types"].index(source.geometry.layer_type) + 1
            text["rope_local_base_freq"] = text["rope_parameters"]["sliding_attention"]["rope_theta"]
        return content

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Lets the model in the folder continue a text."""
        return shell_command("mlx_lm.generate", "--model", out, "--prompt", "Hello")

    def write(self, source: Source, out: Path) -> Exported:
        """The configuration with all other files of the checkpoint."""
        files = write_own_configuration(source, self.document(source), out)
        length = source.file.target_length
        command = self.load_command(source.model, length, out) if out.suffix != ".json" else None
        note = "MLX computes in the precision of the files."
        return Exported(files, command, [*notes_on_lengths(source), note])
