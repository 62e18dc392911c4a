"""Exports factors as a Hugging Face configuration, which transformers and MLX load.

By default short and long inputs use the same factors. So a key-value cache stays valid when a conversation exceeds the
original length. If other factors are given for short inputs, the engine switches between the two.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factor_search.errors import ExportError, OutputError
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.factors_file import FactorsFile, check_belongs
from factor_search.files.json_documents import read_json, write_json
from factor_search.model.geometry import Geometry

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HuggingFace(Engine):
    """A model folder whose ``config.json`` has the factors."""

    name = "huggingface"
    title = "Hugging Face transformers"
    writes = "a model folder, or config.json alone"
    document_name = "config.json"

    def check(self, source: Source) -> None:
        """The model's RoPE type must be one that longrope can replace."""
        check_belongs(source.file, source.geometry)
        if source.short is not None:
            check_belongs(source.short, source.geometry)
            _check_pair(source.file, source.short)
        _check_expressible(source.geometry)

    def limits(self, source: Source) -> list[Limit]:
        """No configuration can express initial tokens."""
        return initial_tokens_limit(source, "a Hugging Face configuration")

    def document(self, source: Source) -> dict[str, Any]:
        """The configuration."""
        return huggingface_config(source.file, source.config, source.short)

    def write(self, source: Source, out: Path) -> Exported:
        """The configuration with all other files of the checkpoint."""
        files = export_huggingface(source.file, source.config, source.checkpoint, out, source.short)
        return Exported(files)


def initial_tokens_limit(source: Source, what: str) -> list[Limit]:
    """The limit of all formats in which every position is rotated with the same factors."""
    if not source.file.initial_tokens:
        return []
    reason = f"the factors keep {source.file.initial_tokens} initial tokens, which {what} cannot express"
    return [Limit(reason, "without initial tokens", without_initial_tokens)]


def without_initial_tokens(source: Source) -> Source:
    """The same factors for all positions."""
    return replace(source, file=source.file.model_copy(update={"initial_tokens": 0}))


def huggingface_config(
    file: FactorsFile, config: "PretrainedConfig", short: FactorsFile | None = None
) -> dict[str, Any]:
    """Return the model's ``config.json`` with the factors.

    It contains both the current ``rope_parameters`` and the older ``rope_scaling`` with ``rope_theta``.

    Args:
        file: the factors.
        config: the configuration of the model.
        short: factors for inputs up to the original length; None uses the same factors for all inputs.

    Raises:
        ExportError: the factors keep initial tokens, the two sets of factors do not fit together, or the model's RoPE
            type cannot be replaced by longrope.
        FactorsError: the factors belong to another rotary geometry.
    """
    from factor_search.model.configuration import read_geometry

    geometry = read_geometry(config, file.model.original_length)
    check_belongs(file, geometry)
    if short is not None:
        check_belongs(short, geometry)
        _check_pair(file, short)
    if file.initial_tokens:
        raise ExportError(
            f"the factors keep {file.initial_tokens} initial tokens, which no inference engine can express: search "
            'with "space": {"initial_tokens": [0]}, or export with --drop-initial-tokens and measure what that costs'
        )
    _check_expressible(geometry)
    longrope = _longrope(file, geometry, short or file)
    content: dict[str, Any] = config.to_dict()
    text: dict[str, Any] = content
    if config.get_text_config(decoder=True) is not config:
        text = next(
            content[name]
            for name in ("text_config", "decoder", "llm_config")
            if isinstance(content.get(name), dict)  # the keys of the text part in transformers
        )
    text["max_position_embeddings"] = max(file.target_length, int(text.get("max_position_embeddings") or 0))
    if "original_max_position_embeddings" in text:  # overrides the one in rope_parameters
        text["original_max_position_embeddings"] = file.model.original_length
    if geometry.layer_type is None:
        text["rope_parameters"] = _kept(text["rope_parameters"]) | longrope
        text["rope_scaling"] = dict(text["rope_parameters"])
        text["rope_theta"] = geometry.rope_theta
    else:
        own = text["rope_parameters"]
        text["rope_parameters"] = own | {geometry.layer_type: _kept(own[geometry.layer_type]) | longrope}
    if text.get("head_dim") is None:  # older readers do not derive it
        text["head_dim"] = geometry.config.hidden_size // geometry.config.num_attention_heads
    return content


def export_huggingface(
    file: FactorsFile,
    config: "PretrainedConfig",
    checkpoint: Callable[[], Path],
    out: Path,
    short: FactorsFile | None = None,
) -> list[Path]:
    """Write a model folder with the new ``config.json`` and all other files of the checkpoint.

    Weights are hard-linked where the file system allows it, so the export takes no space; small files are copied. If
    ``out`` ends in ``.json``, only the configuration is written, and ``checkpoint`` is not called.

    Args:
        file: the factors.
        config: the configuration of the model.
        checkpoint: returns the folder of the checkpoint.
        out: the folder to write, or a file name that ends in ``.json``.
        short: factors for inputs up to the original length; None uses the same factors for all inputs.

    Returns:
        The files written.

    Raises:
        ExportError, FactorsError: see :func:`huggingface_config`.
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    content = huggingface_config(file, config, short)
    if out.suffix == ".json":
        write_json(out, content)
        return [out]
    folder = checkpoint()
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is a GGUF file, and there is no folder to put the configuration into: export it as gguf, give "
            "the Hugging Face folder of the model with --model, or name an --out that ends in .json"
        )
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise OutputError(f"{out} is not empty: choose another --out")
        for item in sorted(folder.iterdir()):
            if item.is_file() and item.name != "config.json":
                _place(item, out / item.name)
                written.append(out / item.name)
        _adjust_tokenizer(out / "tokenizer_config.json", file.target_length)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    write_json(out / "config.json", content)
    return [out / "config.json", *written]


def _check_expressible(geometry: Geometry) -> None:
    if geometry.rotated_pairs is not None:
        raise ExportError(
            f"{geometry.architecture} uses proportional RoPE, which a longrope configuration cannot express"
        )


def _check_pair(long: FactorsFile, short: FactorsFile) -> None:
    """Check that one configuration can express the factors for long and for short inputs.

    Raises:
        ExportError: it cannot; the message says why.
    """
    if short.initial_tokens:
        raise ExportError(f"the short factors keep {short.initial_tokens} initial tokens, which no engine can express")
    if short.model.original_length != long.model.original_length or short.target_length > short.model.original_length:
        raise ExportError(
            f"the short factors are for {short.target_length} tokens, but configurations switch at the original length "
            f"of {long.model.original_length}: readjust them at that length"
        )
    if short.attention_factor != long.attention_factor:
        raise ExportError(
            f"the attention factor is {long.attention_factor:g} for long inputs and {short.attention_factor:g} for "
            'short ones, but a configuration has one for both: readjust with it as "space": {"attention_factor": ...}'
        )


def _longrope(file: FactorsFile, geometry: Geometry, short: FactorsFile) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "type": "longrope",
        "rope_theta": geometry.rope_theta,
        "factor": file.scale,
        "original_max_position_embeddings": file.model.original_length,
        "short_factor": list(short.rescale_factors),
        "long_factor": list(file.rescale_factors),
        "attention_factor": file.attention_factor,
        "short_mscale": file.attention_factor,
        "long_mscale": file.attention_factor,
    }


def _kept(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the old RoPE parameters that stay valid: the geometry, and those that attention layers read."""
    names = ("partial_rotary_factor", "mrope_section", "mrope_interleaved", "mscale_all_dim")
    return {name: parameters[name] for name in names if parameters.get(name) is not None}


def _place(item: Path, destination: Path) -> None:
    if item.suffix == ".json" or item.stat().st_size < 2**20:
        shutil.copyfile(item, destination)
        return
    try:
        os.link(item.resolve(), destination)
    except OSError:  # another file system
        os.symlink(item.resolve(), destination)


def _adjust_tokenizer(file: Path, target_length: int) -> None:
    """Raise the tokenizer's maximum length, above which it prints a warning."""
    if not file.exists():
        return
    content = read_json(file, ExportError)
    if isinstance(content.get("model_max_length"), int) and content["model_max_length"] < target_length:
        write_json(file, content | {"model_max_length": target_length})
