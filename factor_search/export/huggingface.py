"""A Hugging Face configuration that plain transformers (and MLX) loads with the factors in force.

The profile is static, the same factors for short and long inputs, so that nothing changes under a key-value cache when
a conversation crosses the original length; or switching, if a pair is given.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from factor_search.errors import ExportError, OutputError
from factor_search.factors_file import FactorsFile, check_belongs
from factor_search.files.json_documents import read_json, write_json
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry


def huggingface_config(file: FactorsFile, config: PretrainedConfig, short: FactorsFile | None = None) -> dict[str, Any]:
    """The model's ``config.json`` with the factors in it.

    Both the current ``rope_parameters`` and the older ``rope_scaling`` with ``rope_theta`` are written.

    Args:
        file: the factors.
        config: of the model.
        short: other factors for inputs up to the original length; None for the same.

    Raises:
        ExportError: the factors keep initial tokens, the two are no pair, or the model's RoPE type cannot be replaced
            by longrope.
        FactorsError: the factors belong to another rotary geometry.
    """
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
    if geometry.rotated_pairs is not None:
        raise ExportError(
            f"{geometry.architecture} uses proportional RoPE, which a longrope configuration cannot express"
        )
    longrope = _longrope(file, geometry, short or file)
    content: dict[str, Any] = config.to_dict()
    text: dict[str, Any] = content
    if config.get_text_config(decoder=True) is not config:
        text = next(
            content[name]
            for name in ("text_config", "decoder", "llm_config")
            if isinstance(content.get(name), dict)  # where transformers keeps the text part
        )
    text["max_position_embeddings"] = max(file.target_length, int(text.get("max_position_embeddings") or 0))
    if "original_max_position_embeddings" in text:  # overrides the one inside
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
    config: PretrainedConfig,
    checkpoint: Callable[[], Path],
    out: Path,
    short: FactorsFile | None = None,
) -> list[Path]:
    """Write a model folder: the new ``config.json``, and everything else of the checkpoint's folder linked or copied.

    Weights are hard-linked where the file system allows it, so the export takes no space; small files are copied.
    With ``out`` ending in ``.json`` only the configuration is written, and the checkpoint is not asked for.

    Returns:
        The files written.

    Raises:
        ExportError, FactorsError: see :func:`huggingface_config`.
        OutputError: something cannot be written, or ``out`` is a folder with something in it.
    """
    content = huggingface_config(file, config, short)
    if out.suffix == ".json":
        write_json(out, content)
        return [out]
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise OutputError(f"{out} is not empty: choose another --out")
        for item in sorted(checkpoint().iterdir()):
            if item.is_file() and item.name != "config.json":
                _place(item, out / item.name)
                written.append(out / item.name)
        _adjust_tokenizer(out / "tokenizer_config.json", file.target_length)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    write_json(out / "config.json", content)
    return [out / "config.json", *written]


def _check_pair(long: FactorsFile, short: FactorsFile) -> None:
    """Refuse two factors that one configuration cannot hold, or that no input would switch between.

    Raises:
        ExportError: saying why.
    """
    if short.initial_tokens:
        raise ExportError(f"the short factors keep {short.initial_tokens} initial tokens, which none can express")
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
    """What of the old RoPE parameters still holds: the geometry, and what attention layers read for themselves."""
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
    """A tokenizer warns beyond the length it was configured for."""
    if not file.exists():
        return
    content = read_json(file, ExportError)
    if isinstance(content.get("model_max_length"), int) and content["model_max_length"] < target_length:
        write_json(file, content | {"model_max_length": target_length})
