"""The scaling of a configuration as factors with which a model computes what it computes without them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search.errors import FactorsError, one_line
from factor_search.factors import Factors
from factor_search.model.geometry import Geometry

NEIGHBOURS = 8
"""How many float32 numbers above and below a factor are tried."""


def as_configured(geometry: Geometry, target_length: int) -> Factors:
    """Return the scaling of a configuration as factors.

    The lists of longrope are taken as they are. Of other types, lambda_i is the plain frequency over the configured
    one; among the float32 numbers near it, the one whose frequency 1 / (lambda_i theta^(2i/d)) is nearest to the
    configured one. Most are equal to it; where no float32 number gives it, it is off by one unit in the last place.

    Args:
        geometry: of the configuration.
        target_length: tokens; decides between the short and the long list of longrope, and the base of dynamic.

    Raises:
        FactorsError: the configuration has no scaling, or not all that its RoPE type needs.
    """
    try:
        return _as_configured(geometry, target_length)
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:  # transformers checks little
        raise FactorsError(
            f"the parameters of RoPE type {geometry.base_rope_type!r} are not complete or do not fit: {one_line(error)}"
        ) from None


def _as_configured(geometry: Geometry, target_length: int) -> Factors:
    configured = geometry.configured_factors(target_length)
    if configured is None:
        raise FactorsError(
            f"{geometry.architecture} has RoPE type {geometry.base_rope_type!r}, without scaling factors"
        )
    if geometry.base_rope_type == "longrope":
        parameters = rope_parameters(geometry)
        beyond = target_length > parameters["original_max_position_embeddings"]
        exact = Factors.of(parameters["long_factor" if beyond else "short_factor"], 0, configured.attention_factor)
        return exact if np.allclose(exact.rescale_factors, configured.rescale_factors, rtol=1e-4) else configured
    if geometry.base_rope_type not in ROPE_INIT_FUNCTIONS:
        return configured
    initialise = ROPE_INIT_FUNCTIONS[geometry.base_rope_type]
    wanted, attention = initialise(geometry.config, None, seq_len=target_length, layer_type=geometry.layer_type)
    return Factors.of(_nearest(geometry, configured.rescale_factors, wanted), 0, attention)


def default_target_length(geometry: Geometry) -> int:
    """Return the tokens that a configuration extends the context to: its length, or original length times factor."""
    factor = rope_parameters(geometry).get("factor") or 1.0
    return max(geometry.configured_length, round(geometry.original_length * factor))


def rope_parameters(geometry: Geometry) -> Mapping[str, Any]:
    """Return the RoPE parameters of the configuration, of the searched layer type where there are several."""
    config: PretrainedConfig = geometry.config
    parameters: Mapping[str, Any] = config.rope_parameters
    return parameters if geometry.layer_type is None else parameters[geometry.layer_type]


def _nearest(geometry: Geometry, factors: tuple[float, ...], wanted: torch.Tensor) -> list[float]:
    """Return the float32 numbers near the factors whose frequencies are nearest to the wanted ones, as short decimals.

    Args:
        geometry: gives the frequencies of factors.
        factors: approximate, one for each pair.
        wanted: frequencies of shape (pairs,).
    """
    start = np.asarray(factors, np.float32)
    steps = sorted(range(-NEIGHBOURS, NEIGHBOURS + 1), key=abs)
    rows = [np.round(start, 5), *((start.view(np.int32) + step).view(np.float32) for step in steps)]
    off = [(geometry.inverse_frequencies(row.tolist()) - wanted).abs().numpy() for row in rows]
    chosen = np.stack(rows)[np.argmin(np.stack(off), axis=0), np.arange(len(start))]  # the first of equal ones
    return [float(str(value)) for value in chosen]
