"""``factor-search inspect``: a model's RoPE geometry, and what can be searched for it."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from api.cli.arguments import add_json_argument, add_model_arguments, model_spec
from factor_search.export.contract import Source
from factor_search.export.registry import accepted_formats
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.methods import closed_form
from factor_search.spec import INITIAL_TOKENS

if TYPE_CHECKING:
    from factor_search.model.geometry import Geometry


FLOAT16 = (
    "the precision is float16, in which models that were trained in bfloat16 (Gemma 2 and 3) overflow: if logits are "
    "said to be not finite, give model.dtype bfloat16 (--set model.dtype=bfloat16)"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the configuration and print."""
    from factor_search.model.configuration import read_geometry
    from factor_search.model.loading import load_config

    spec = model_spec(arguments)
    config = load_config(spec)
    geometry = read_geometry(config, spec.original_length)
    length = 2 * geometry.original_length
    described = FactorsModel.of(spec.id, spec.revision, geometry)
    trial = factors_file(closed_form("ntk", geometry, length), described, length)
    description = describe(geometry, accepted_formats(Source(trial, spec)))
    if str(config.get_text_config(decoder=True).dtype or config.dtype) == "torch.float16":
        description["notes"].append(FLOAT16)
    if arguments.json:
        print(json.dumps(description))
        return 0
    wavelengths = description.pop("wavelengths")
    for key, value in description.items():
        if key == "searchable" and value is False:
            value = f"no: {description['not_searchable_because']}"
        if isinstance(value, dict):
            value = "; ".join(f"{name.replace('_', ' ')} {what}" for name, what in value.items())
        if value and key != "not_searchable_because":
            separator = "; " if key == "notes" else ", "
            print(f"{key.replace('_', ' '):22}{separator.join(value) if isinstance(value, list) else value}")
    print(f"{'wavelengths':22}{', '.join(f'{value:.4g}' for value in wavelengths)}")
    return 0


def describe(geometry: "Geometry", formats: Sequence[str]) -> dict[str, Any]:
    """The geometry as JSON, with the formats of engines that can express factors of the model."""
    reason = geometry.not_loadable or geometry.no_longer_context
    return {
        "architecture": geometry.architecture,
        "rope_theta": geometry.rope_theta,
        "rotary_dim": geometry.rotary_dim,
        "pairs": geometry.pairs,
        "layer_type": geometry.layer_type,
        "original_length": geometry.original_length,
        "configured_length": geometry.configured_length,
        "base_rope_type": geometry.base_rope_type,
        "critical_dimension": geometry.critical_dimension,
        "reach": geometry.reach,
        "searchable": reason is None
        and {
            "rescale_factors": geometry.rotated_pairs or geometry.pairs,
            "initial_tokens": [count for count in INITIAL_TOKENS if count <= geometry.original_length],
            "target_length": f"above {geometry.original_length}",
        },
        "not_searchable_because": reason,
        "notes": list(geometry.notes),
        "export_formats": list(formats),
        "wavelengths": geometry.wavelengths,
    }
