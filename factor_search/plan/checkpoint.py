"""Checks a checkpoint that a user tuned elsewhere: it must be the plan's model with other weights."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from factor_search.errors import ModelLoadError, UnsupportedModelError
from factor_search.factors_file import parse_factors
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.injection import probe
from factor_search.model.loading import check_weights, load_config, load_model, load_tokenizer
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, made_model
from factor_search.spec import ModelSpec

OF_SHAPES = re.compile(
    r"(\w+_)?(size|heads|layers?|dims?|rank|experts|groups|channels|depth|bias|norm|kernel|conv|ratio|latent)"
    r"|n_\w+|d_\w+|layer_types|\w*mlp_\w*|qk_\w+|\w+_per_layer|tie_word_embeddings|parallel_\w+|new_decoder_\w+"
)
"""Names in a configuration on which the shapes of weights depend, and some more: none that training changes."""


def accept_checkpoint(work: AwaitWork, path: Path) -> Outcome:
    """Take a checkpoint in place of one that the plan would have made itself.

    Whatever RoPE scaling its configuration has, it is used with factors of the plan.

    Raises:
        ModelLoadError: it cannot be loaded as a whole.
        UnsupportedModelError: it is another model than the plan's, saying in what it differs, or gives no finite
            logits.
    """
    spec = check_checkpoint(work, path)
    loaded = load_model(spec)
    probe(loaded.model, loaded.geometry)
    return Outcome(model=spec, report={"checkpoint": spec.id, "content": loaded.content})


def check_checkpoint(work: AwaitWork, path: Path) -> ModelSpec:
    """Refuse a checkpoint that is another model, as far as that shows without its weights.

    Returns:
        How to load it.

    Raises:
        ModelLoadError: its configuration cannot be read, or one of its files is damaged.
        UnsupportedModelError: it is another model than the plan's, saying in what it differs.
    """
    if not path.is_dir():
        raise ModelLoadError(f"there is no model folder {path}")
    if (path / "adapter_config.json").exists():
        raise ModelLoadError(f"{path} holds adapters: merge them into the model, and supply the whole checkpoint")
    config = load_config(work.model)
    geometry = read_geometry(config, parse_factors(work.factors).model.original_length)
    spec = made_model(work.model, path, geometry.original_length)
    theirs = load_config(spec)
    _check_architecture(path, config, theirs)
    _check_rotation(path, geometry, read_geometry(theirs, geometry.original_length))
    _check_sizes(path, config, theirs)
    check_weights(spec, theirs)
    _check_tokenizer(path, work.model, spec)
    return spec


def _check_architecture(path: Path, ours: PretrainedConfig, theirs: PretrainedConfig) -> None:
    if (theirs.model_type, theirs.architectures) != (ours.model_type, ours.architectures):
        named = [", ".join(config.architectures or [config.model_type]) for config in (theirs, ours)]
        raise UnsupportedModelError(f"{path} is a {named[0]}, but the plan's model is a {named[1]}")


def _check_rotation(path: Path, ours: Geometry, theirs: Geometry) -> None:
    for name in ("rope_theta", "rotary_dim", "odd", "layer_type", "rotated_pairs"):
        if getattr(theirs, name) != getattr(ours, name):
            raise UnsupportedModelError(
                f"{path} has {name} {getattr(theirs, name)}, but the plan's model has {getattr(ours, name)}: factors "
                "found for one do not fit the other"
            )


def _check_sizes(path: Path, ours: PretrainedConfig, theirs: PretrainedConfig) -> None:
    """Compare what the shapes of weights depend on, as two configurations say it; nothing of their size is built."""
    sizes = [dict(_sizes(config.to_dict())) for config in (theirs, ours)]
    different = [name for name in sizes[0] | sizes[1] if sizes[0].get(name) != sizes[1].get(name)]
    if different:
        values = [json.dumps(known.get(different[0]))[:60] for known in sizes]
        raise UnsupportedModelError(
            f"{path} has another shape than the plan's model: its {different[0]} is {values[0]}, not {values[1]}"
            + (f", and {len(different) - 1} other values differ" if len(different) > 1 else "")
        )


def _sizes(content: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that a shape depends on: whole numbers and switches, of the parts of a model too."""
    for name, value in content.items():
        if isinstance(value, dict) and name.endswith("_config"):
            yield from _sizes(value, f"{place}{name}.")
        elif OF_SHAPES.fullmatch(name) and value is not None:
            yield f"{place}{name}", value


def _check_tokenizer(path: Path, ours: ModelSpec, theirs: ModelSpec) -> None:
    if load_tokenizer(theirs).get_vocab() != load_tokenizer(ours).get_vocab():
        raise UnsupportedModelError(
            f"{path} has another vocabulary than the plan's model: documents would become other tokens than in the "
            "stages before"
        )
