"""Compares the frequencies of a loaded model with what its configuration was read to mean; the live ones count."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from factor_search.errors import UnsupportedModelError
from factor_search.factors import Factors
from factor_search.model.decoder import decoder_of
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Site, find_sites

TOLERANCE = 1e-4
"""Relative difference of frequencies that rounding in float32 explains."""
CHANGING = frozenset({"dynamic", "longrope"})
"""RoPE types whose frequencies depend on the length, of which a model just loaded shows only the first ones."""
LARGEST = 1.1
"""Largest frequency in radians per token, with room for published factors slightly below 1; RoPE starts at 1."""


def with_live_frequencies(model: PreTrainedModel, geometry: Geometry) -> Geometry:
    """Return the geometry of a loaded model: the given one, unless its rotary modules hold other frequencies.

    If they do, a geometric series with another base (theta_i = base^(-2i/d)) becomes the base of the geometry, from
    which closed forms and bounds start. Any other decreasing frequencies become its factors as configured,
    lambda_i = plain theta_i / live theta_i.

    Args:
        model: a causal language model, not within an :class:`~factor_search.model.injection.Injector`.
        geometry: read from the configuration.

    Raises:
        UnsupportedModelError: there are no rotary modules, they differ from each other, or their frequencies are not
            those of RoPE.
    """
    return with_frequencies_of(decoder_of(model), geometry)


def with_frequencies_of(decoder: nn.Module, geometry: Geometry) -> Geometry:
    """See :func:`with_live_frequencies`; takes the decoder itself."""
    sites = find_sites(decoder, geometry)
    live, attention = _state(sites[0], geometry)
    tolerance = max(_tolerance(site) for site in sites)
    name = geometry.architecture
    for site in sites[1:]:
        other, scaling = _state(site, geometry)
        if not torch.allclose(other, live, rtol=tolerance, atol=0) or not math.isclose(scaling, attention):
            raise UnsupportedModelError(
                f"the rotary modules of {name} hold different frequencies, of which its configuration says nothing: "
                "one set of factors would not fit all of them"
            )
    configured = geometry.configured_factors(None) or Factors.of([1.0] * geometry.pairs)
    expected = geometry.inverse_frequencies(configured.rescale_factors)
    if torch.allclose(live, expected, rtol=tolerance, atol=0) and math.isclose(
        attention, configured.attention_factor, rel_tol=TOLERANCE
    ):
        return geometry
    _check_frequencies(live, attention, geometry)
    base = _base_of(live, geometry.exponent_dim, tolerance)
    if base is not None and attention == 1:
        note = f"the loaded model rotates with the plain base {base:g}, whatever its configuration says"
        return replace(geometry, rope_theta=base, base_rope_type="default", notes=(*geometry.notes, note))
    if geometry.base_rope_type in CHANGING:
        raise UnsupportedModelError(
            f"the frequencies of {name} are not those of its RoPE type {geometry.base_rope_type!r}, and may change "
            "with the length: what it computes at other lengths is not known"
        )
    factors = Factors.of((geometry.inverse_frequencies() / live).tolist(), attention_factor=attention)
    note = "the loaded model rotates with other frequencies than its configuration says; they count as configured"
    return replace(geometry, base_rope_type="live", live_factors=factors, notes=(*geometry.notes, note))


def _state(site: Site, geometry: Geometry) -> tuple[Tensor, float]:
    """Return the frequencies of a rotary module as float32 of shape (pairs,), and its attention factor.

    Of the types that change with the length, those before the first forward pass, of which transformers keeps a copy.
    """
    live = site.module.get_buffer(site.buffer)
    if geometry.base_rope_type in CHANGING:
        live = getattr(site.module, site.buffer.replace("inv_freq", "original_inv_freq"), live)
    return live.detach().float().cpu(), float(getattr(site.module, site.scaling, 1.0))


def _tolerance(site: Site) -> float:
    return max(TOLERANCE, float(torch.finfo(site.module.get_buffer(site.buffer).dtype).eps))


def _check_frequencies(live: Tensor, attention: float, geometry: Geometry) -> None:
    """Check that frequencies may be those of RoPE: finite, decreasing from at most about 1 radian per token.

    Raises:
        UnsupportedModelError: they are not; says what they are.
    """
    shown = ", ".join(f"{value:.4g}" for value in live[:3].tolist())
    if not live.isfinite().all() or not math.isfinite(attention):
        fault = "are not finite"
    elif not (live > 0).all() or not attention > 0:
        fault = "are not all above 0"
    elif not (live[1:] < live[:-1]).all() or live[0] > LARGEST:
        fault = "do not decrease from 1"
    else:
        return
    raise UnsupportedModelError(
        f"the frequencies in the rotary modules of {geometry.architecture} ({shown}, ...) {fault}, so they are not "
        "those of RoPE, nor what its configuration says: its code computes something else, or this version of "
        "transformers does not initialise it"
    )


def _base_of(live: Tensor, d: int, tolerance: float) -> float | None:
    """Return the base of which the frequencies are the series base^(-2i/d), or None if there is none."""
    pairs = len(live)
    if pairs < 3:  # two points lie on every line
        return None
    base = math.exp(-math.log(live[-1].item()) * d / (2 * (pairs - 1)))
    base = float(f"{base:.6g}")  # the same number whatever device and order of operations computed the frequencies
    series = base ** (-2 * torch.arange(pairs, dtype=torch.float64) / d)
    return base if torch.allclose(live.double(), series, rtol=tolerance, atol=0) else None
