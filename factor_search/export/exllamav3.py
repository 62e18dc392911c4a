"""Exports factors as a model folder for ExLlamaV3.

Read in ExLlamaV3 1.6.5:

* ``exllamav3/util/rope.py``, ``_rope_params_longrope``: the long list is used if ``max_position_embeddings`` exceeds
  the original length, for all inputs, and cos and sin are multiplied by sqrt(1 + ln(m / o) / ln(o)); see
  :mod:`factor_search.export.lengths`. No attention factor is read.
* ``exllamav3/model/config.py``, ``read_rope_settings_default``: reads ``rope_scaling`` before ``rope_parameters``,
  and only at the top level of the configuration.
* ``exllamav3/architecture/*.py``: which models rotate all layers with these settings, in halves (``RopeStyle.NEOX``).
"""

from pathlib import Path
from typing import Any

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
        "arcee",
        "dots1",
        "gemma2",
        "glm4_moe",
        "gpt_oss",
        "hyperclovax",
        "llama",
        "minimax_m2",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen3_next",
        "seed_oss",
        "smollm3",
    }
)
"""Types of models whose files rotate all layers in halves, with the settings of the configuration."""


class ExLlamaV3(Engine):
    """A model folder whose lengths express the attention factor."""

    name = "exllamav3"
    title = "ExLlamaV3"
    writes = "a model folder for ExLlamaV3, or config.json alone"
    document_name = "config.json"

    def check(self, source: Source) -> None:
        """Longrope must be computed for the type of model."""
        check_configuration(source, self.title)
        check_computes(source, "ExLlamaV3 1.6", ACCEPTED)

    def limits(self, source: Source) -> list[Limit]:
        """Initial tokens, factors that switch, and an attention factor below 1."""
        return [
            *switching_limit(source, "ExLlamaV3 chooses one list when it loads the model"),
            *initial_tokens_limit(source, self.title),
            *attention_factor_limit(source, self.title),
        ]

    def document(self, source: Source) -> dict[str, Any]:
        """The configuration."""
        return configuration_with_lengths(source, lengths_of(source))

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Quantises the model in the folder, with ``convert.py`` of ExLlamaV3's source."""
        quantised = out.with_name(f"{out.name}-exl3")
        return shell_command("python", "convert.py", "-i", out, "-o", quantised, "-w", "work", "-b", 4)

    def write(self, source: Source, out: Path) -> Exported:
        """The configuration with all other files of the checkpoint."""
        files = write_own_configuration(source, self.document(source), out)
        note = "Convert the folder with ExLlamaV3's convert.py, or copy its config.json into a model converted before."
        return Exported(files, None, [*notes_on_lengths(source), note])
