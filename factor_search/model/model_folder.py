"""Checks the files of a model folder before a library reads them: what is missing, and what is damaged."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from factor_search.errors import ModelLoadError, one_line
from factor_search.files.json_documents import read_json
from factor_search.files.safetensors import tensor_shapes
from factor_search.model.checkpoint_files import INDEX, LARGEST_JSON, weights_of
from factor_search.model.configuration_values import check_values

CONFIGURATION = "config.json"
COMPANIONS = (
    *(GENERATION_CONFIG_NAME, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""JSON objects that transformers reads beside the configuration, where they are there."""
LARGEST_TOKENIZER = 256 * 2**20
"""Bytes of a ``tokenizer.json``; the largest published ones have 35 MB."""
PACKED = 32
"""How many numbers of quantised weights may be stored as one, at most."""


def folder_configuration(folder: Path) -> dict[str, Any]:
    """Return the checked content of a folder's ``config.json``.

    Raises:
        ModelLoadError: it is not there, saying what is there instead; or it is damaged, naming the field.
    """
    require_configuration(folder)
    file = folder / CONFIGURATION
    return check_values(read_json(file, ModelLoadError, most_bytes=LARGEST_JSON, model=True), str(file))


def require_configuration(folder: Path) -> None:
    """Refuse a folder without a ``config.json``.

    Raises:
        ModelLoadError: there is none, saying what is there instead.
    """
    if not (folder / CONFIGURATION).exists():
        raise ModelLoadError(_what_it_is(folder))


def check_files(folder: Path, config: PretrainedConfig) -> None:
    """Check that a folder holds weights that may be those of its configuration, and that no other file is damaged.

    Only headers are read of the weights.

    Raises:
        ModelLoadError: names the file, and what is wrong with it.
    """
    for name in COMPANIONS:
        if (folder / name).exists():
            content = check_values(
                read_json(folder / name, ModelLoadError, most_bytes=LARGEST_JSON, model=True), str(folder / name)
            )
            if name == GENERATION_CONFIG_NAME:
                _check_generation(content, folder / name)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and (not tokenizer.is_file() or tokenizer.stat().st_size > LARGEST_TOKENIZER):
        raise ModelLoadError(f"{tokenizer} has more than {LARGEST_TOKENIZER // 2**20} MiB, or is not a regular file")
    files = _weights(folder)
    if all(file.suffix == ".safetensors" for file in files):
        shapes = [shape for file in files for shape in tensor_shapes(file).values()]
        _check_enough(folder / CONFIGURATION, config, shapes)


def _check_generation(content: dict[str, Any], file: Path) -> None:
    try:
        GenerationConfig.from_dict(content)
    except Exception as error:  # whatever it raises for a value
        raise ModelLoadError(f"{file} has a value that transformers refuses: {one_line(error)}") from None


def _check_enough(file: Path, config: PretrainedConfig, shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuse a configuration that describes far more than the weights hold, before a model of its size is built."""
    sizes = [math.prod(shape) for shape in shapes]
    text = config.get_text_config(decoder=True)
    layers, words, width = (getattr(text, name, None) for name in ("num_hidden_layers", "vocab_size", "hidden_size"))
    if isinstance(layers, int) and layers > len(sizes):
        raise ModelLoadError(
            f"{file}: num_hidden_layers is {layers}, but the weights beside it are {len(sizes)} tensors"
        )
    if isinstance(words, int) and isinstance(width, int) and words * width > sum(sizes) * PACKED:
        raise ModelLoadError(
            f"{file}: vocab_size is {words} and hidden_size {width}, but the weights beside it hold {sum(sizes)} "
            "numbers"
        )


def _weights(folder: Path) -> list[Path]:
    """Return the files that transformers reads weights from.

    Raises:
        ModelLoadError: there are none, or a name of one is wrong.
    """
    names = weights_of(folder)
    if not names:
        raise ModelLoadError(
            f"{folder} holds a configuration and no weights: give the folder that also holds model.safetensors, or its "
            "index and all files that it names"
        )
    holder = folder / CONFIGURATION
    if len(names) > 1:
        holder = folder / names.pop(0)
        check_values(read_json(holder, ModelLoadError, most_bytes=LARGEST_JSON, model=True), str(holder))
    for path in (folder / name for name in names):
        if not path.exists() or (holder.name.endswith(INDEX) and not path.is_file()):
            raise ModelLoadError(f"{holder} names {path.name:.100}, which is not there: download it as well")
    return [folder / name for name in names]


def _what_it_is(folder: Path) -> str:
    """Say what a folder without a configuration holds, and what to give instead."""
    try:
        names = sorted(item.name for item in folder.iterdir())
    except OSError as error:
        return f"cannot read {folder}: {error.strerror or error}"
    models = [name for name in names if (folder / name / CONFIGURATION).is_file()]
    files = [name for name in names if name.lower().endswith(".gguf")]
    if "model_index.json" in names:
        return f"{folder} holds a pipeline that makes images, not a language model: give a causal language model"
    if files:
        return f"{folder} holds GGUF files and no {CONFIGURATION}: give one of them as the model, {folder / files[0]}"
    if "params.json" in names:
        return (
            f"{folder} holds a model in the format of its makers (params.json): give its folder in that of Hugging Face"
        )
    if models:
        return f"{folder} has no {CONFIGURATION}, but {models[-1]} in it has: give that folder, {folder / models[-1]}"
    if any("token" in name for name in names):
        return (
            f"{folder} holds a tokenizer and no model: give the folder that also holds {CONFIGURATION} and the weights"
        )
    return f"{folder} holds no model: there is no {CONFIGURATION} in it"
