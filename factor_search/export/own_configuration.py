"""Configurations of engines that read the format of Hugging Face, but say some things in another way."""

from pathlib import Path
from typing import Any

from factor_search.export.configuration import TEXT_PARTS, huggingface_config
from factor_search.export.contract import Source
from factor_search.export.lengths import Lengths
from factor_search.export.model_folder import write_model_folder
from factor_search.files.json_documents import write_json


def text_part(content: dict[str, Any], source: Source) -> tuple[str | None, dict[str, Any]]:
    """Return the part of a ``config.json`` that describes the decoder, with its key; None if that is all of it."""
    if source.geometry.config is not source.config:
        for name in TEXT_PARTS:
            if isinstance(part := content.get(name), dict):
                return name, part
    return None, content


def configuration_with_lengths(source: Source, lengths: Lengths) -> dict[str, Any]:
    """Return a ``config.json`` in which two lengths express the attention factor, in all spellings that are read.

    It has ``rope_parameters`` (transformers 5), and ``rope_scaling`` with ``rope_theta`` (before). The original length
    stands in both and at the top level, and so does the share of a head that rotates.

    Args:
        source: without limits.
        lengths: see :func:`factor_search.export.lengths.lengths_for`.
    """
    content = huggingface_config(source.file, source.config, source.short)
    _, text = text_part(content, source)
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
    return write_model_folder(content, source.checkpoint(), out, source.file.target_length)
