"""Checks a checkpoint that a user tuned elsewhere: it must be the plan's model with other weights."""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from factor_search.errors import ModelLoadError, UnsupportedModelError, one_line
from factor_search.factors_file import parse_factors
from factor_search.model.auto_class import auto_class
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.injection import probe
from factor_search.model.loading import load_config, load_model, load_tokenizer, quietly
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, made_model
from factor_search.spec import ModelSpec


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
        ModelLoadError: its configuration cannot be read.
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
    _check_shapes(path, _shapes(config, work.model), _shapes(theirs, spec))
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


def _shapes(config: PretrainedConfig, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that a configuration asks for, without any in memory."""
    loader = auto_class(config)
    try:
        with quietly(), torch.device("meta"):
            model = loader.from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # whatever model code raises on a broken configuration
        raise ModelLoadError(f"cannot build the model that {spec.id} describes: {one_line(error)}") from error
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _check_shapes(path: Path, ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> None:
    different = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if different:
        shapes = [
            " x ".join(map(str, known[different[0]])) if different[0] in known else "absent" for known in (theirs, ours)
        ]
        raise UnsupportedModelError(
            f"{path} has another shape than the plan's model: {different[0]} is {shapes[0]}, not {shapes[1]}"
            + (f", and {len(different) - 1} other weights differ" if len(different) > 1 else "")
        )


def _check_tokenizer(path: Path, ours: ModelSpec, theirs: ModelSpec) -> None:
    if load_tokenizer(theirs).get_vocab() != load_tokenizer(ours).get_vocab():
        raise UnsupportedModelError(
            f"{path} has another vocabulary than the plan's model: documents would become other tokens than in the "
            "stages before"
        )
