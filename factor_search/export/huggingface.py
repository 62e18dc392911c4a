"""Exports factors as a Hugging Face configuration, which transformers loads.

By default short and long inputs use the same factors. So a key-value cache stays valid when a conversation exceeds the
original length. If other factors are given for short inputs, transformers switches between the two.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factor_search.errors import ExportError
from factor_search.export.configuration import check_pair, huggingface_config, language_model_of, loaded_by
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.model_folder import shell_command, write_model_folder
from factor_search.factors_file import FactorsFile
from factor_search.files.gguf import is_gguf
from factor_search.files.json_documents import write_json
from factor_search.model.checkpoint_files import is_local
from factor_search.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["HuggingFace", "export_huggingface", "huggingface_config", "initial_tokens_limit", "without_initial_tokens"]


class HuggingFace(Engine):
    """A model folder whose ``config.json`` has the factors."""

    name = "huggingface"
    title = "Hugging Face transformers"
    writes = "a model folder, or config.json alone"
    document_name = "config.json"

    def check(self, source: Source) -> None:
        """The model must be a folder or on the hub, with a RoPE that longrope can replace."""
        if is_gguf(source.model.id):
            raise ExportError(
                f"{source.model.id} is a GGUF file, which this format does not take: export with --format gguf, or "
                "give the folder of the model as --model"
            )
        check_pair(source.file, source.short, source.geometry, source.config)

    def limits(self, source: Source) -> list[Limit]:
        """No configuration can express initial tokens."""
        return initial_tokens_limit(source, "a Hugging Face configuration")

    def document(self, source: Source) -> dict[str, Any]:
        """The configuration."""
        return huggingface_config(source.file, source.config, source.short, with_form=True)

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Loads the folder in transformers."""
        remote = ", trust_remote_code=True" if model.trust_remote_code else ""
        load = f"AutoModelForCausalLM.from_pretrained({json.dumps(str(out))}{remote})"
        code = f"from transformers import AutoModelForCausalLM; {load}"
        return shell_command("python", "-c", code)

    def write(self, source: Source, out: Path) -> Exported:
        """The configuration with all other files of the checkpoint, loaded once to see that it computes the same."""
        from factor_search.export.verification.plain import PlainCheck

        content = self.document(source)
        if out.suffix == ".json":
            write_json(out, content, finite=False)
            files = [out]
        else:
            check = PlainCheck.of(source.model, source.file, source.short) if source.check else None
            length, from_hub = source.file.target_length, not is_local(source.model.id)
            files = write_model_folder(content, source.checkpoint(), out, length, check, from_hub=from_hub)
        versions, otherwise = loaded_by(content)
        notes = [f"transformers{versions} loads it", *([otherwise] if otherwise else [])]
        form = source.file.form
        written = language_model_of(content)["rope_parameters"].get("rope_type")
        if form is not None and written == "yarn" and form.factor != source.file.scale:
            notes.append(
                f"transformers warns that the factor {form.factor:g} is not {source.file.scale:g}, the quotient of the "
                "lengths: it is meant so"
            )
        return Exported(files, None, notes)


def export_huggingface(
    file: FactorsFile,
    config: "PretrainedConfig",
    checkpoint: Callable[[], Path],
    out: Path,
    short: FactorsFile | None = None,
    check: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write a model folder with the new ``config.json`` and all other files of the checkpoint.

    If ``out`` ends in ``.json``, only the configuration is written, and ``checkpoint`` is not called.

    Args:
        file: the factors.
        config: the configuration of the model.
        checkpoint: returns the folder of the checkpoint.
        out: the folder to write, or a file name that ends in ``.json``.
        short: factors for inputs up to the original length; None uses the same factors for all inputs.
        check: called with a written folder before it gets its final name; raises if it is not as it should be.

    Returns:
        The files written.

    Raises:
        ExportError, FactorsError: see :func:`factor_search.export.configuration.huggingface_config`.
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    content = huggingface_config(file, config, short, with_form=True)
    if out.suffix == ".json":
        write_json(out, content, finite=False)
        return [out]
    return write_model_folder(content, checkpoint(), out, file.target_length, check)


def initial_tokens_limit(source: Source, what: str) -> list[Limit]:
    """The limit of all formats in which every position is rotated with the same factors."""
    if not source.file.initial_tokens:
        return []
    reason = f"the factors keep {source.file.initial_tokens} initial tokens, which {what} cannot express"
    return [Limit(reason, "without initial tokens", without_initial_tokens)]


def without_initial_tokens(source: Source) -> Source:
    """The same factors for all positions."""
    return replace(source, file=source.file.model_copy(update={"initial_tokens": 0}))
