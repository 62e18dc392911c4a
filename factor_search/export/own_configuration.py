"""Configurations of engines that read the format of Hugging Face, but say some things in another way."""

from pathlib import Path
from typing import Any

from factor_search.export.configuration import huggingface_config, text_part
from factor_search.export.contract import Source
from factor_search.export.lengths import Lengths, lengths_for
from factor_search.export.model_folder import write_model_folder
from factor_search.files.json_documents import write_json
from factor_search.model.checkpoint_files import is_local


def lengths_of(source: Source) -> Lengths:
    """Return the two lengths that express the attention factor of a source, which is at least 1."""
    file = source.file
    return lengths_for(file.attention_factor, file.target_length, file.model.original_length)


def notes_on_lengths(source: Source) -> list[str]:
    """Return what a user should know of :func:`lengths_of`."""
    return lengths_of(source).notes(source.file.attention_factor, source.file.target_length)


def configuration_with_lengths(source: Source, lengths: Lengths) -> dict[str, Any]:
    """Return a ``config.json`` in which two lengths express the attention factor, in all spellings that are read.

    It has ``rope_parameters`` (transformers 5), and ``rope_scaling`` with ``rope_theta`` (before). The original length
    stands in both and at the top level, and so does the share of a head that rotates.

    Args:
        source: without limits.
        lengths: see :func:`factor_search.export.lengths.lengths_for`.
    """
    content = huggingface_config(source.file, source.config, source.short)
    _, text = text_part(content, source.config)
    layer_type = source.geometry.layer_type
    longrope = text["rope_parameters"] if layer_type is None else text["rope_parameters"][layer_type]
    longrope["original_max_position_embeddings"] = lengths.original
    text["rope_scaling"] = dict(longrope)
    text["rope_theta"] = source.geometry.rope_theta
    text["max_position_embeddings"] = lengths.maximum
    text["original_max_position_embeddings"] = lengths.original
    if longrope.get("partial_rotary_factor"):
        text["partial_rotary_factor"] = longrope["partial_rotary_factor"]
    return content


def write_own_configuration(source: Source, content: dict[str, Any], out: Path) -> list[Path]:
    """Write a model folder with a configuration and all other files of the checkpoint, whole or not at all.

    Args:
        source: without limits.
        content: the configuration.
        out: the folder to write; or a name that ends in ``.json``, for the configuration alone.

    Returns:
        The files written, the configuration first.

    Raises:
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    if out.suffix == ".json":
        write_json(out, content, finite=False)
        return [out]
    return write_model_folder(
        content, source.checkpoint(), out, source.file.target_length, from_hub=not is_local(source.model.id)
    )
