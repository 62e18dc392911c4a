"""Closed forms that raise the base, or look like one that is raised: lambda grows with the pair's index."""

import math
from collections.abc import Callable
from dataclasses import replace

from factor_search.factors import Factors
from factor_search.model.geometry import Geometry, longrope_attention_factor

LONGROPE2_HEIGHT = 1.36
"""lambda / s of the constant in LongRoPE2's published vector."""
MIXED_EXPONENT = 0.625
RAISED_BASE = 500_000.0
"""Of Entropy-ABF."""
EXPONENT = 1.2
"""Of s in :func:`raised_base`."""


def ntk_aware(geometry: Geometry, target_length: int) -> Factors:
    """NTK-aware scaling uses base' = base * s^(d/(d-2)), so that lambda of the last pair is s (2309.00071, eq. 16)."""
    d = geometry.exponent_dim
    base = geometry.rope_theta * scale_of(geometry, target_length) ** (d / max(d - 2, 1))
    return new_base(geometry, base)


def dynamic_ntk(geometry: Geometry, target_length: int) -> Factors:
    """Dynamic NTK at length n = sL, as in inference engines: base' = base * (s n / L - (s - 1))^(d/(d-2))."""
    d = geometry.exponent_dim
    scale = scale_of(geometry, target_length)
    base = geometry.rope_theta * (scale * target_length / geometry.original_length - (scale - 1)) ** (d / max(d - 2, 1))
    return new_base(geometry, base)


def ntk_critical(geometry: Geometry, target_length: int) -> Factors:
    """NTK scaling to the critical dimension uses base' = base^(ln(L'/2pi) / ln(L/2pi)).

    The pair that completes exactly one rotation within the original length L completes it within the target length L'
    (LongRoPE2, 2502.20082, sec. 3).
    """
    two_pi = 2 * math.pi
    exponent = math.log(target_length / two_pi) / math.log(geometry.original_length / two_pi)
    return new_base(geometry, geometry.rope_theta**exponent)


def ntk_fixed(geometry: Geometry, target_length: int) -> Factors:
    """NTK-RoPE-fixed is lambda_i = s^((2i+2)/d): the fastest pair is rescaled too, and the last one by s.

    Of Su Jianlin, "the road to upgrading transformers", part 11 (kexue.fm/archives/9706).
    """
    d = geometry.exponent_dim
    return _growing(geometry, lambda i: scale_of(geometry, target_length) ** ((2 * i + 2) / d))


def ntk_mixed(geometry: Geometry, target_length: int, exponent: float = MIXED_EXPONENT) -> Factors:
    """NTK-RoPE-mixed is lambda_i = exp(ln s ((i+1) / (d/2))^b), with b = 0.625 by default.

    The base of each pair's radix grows with a power of its index below 1, so that high frequencies change less (of the
    same article as :func:`ntk_fixed`).
    """
    log_scale, pairs = math.log(scale_of(geometry, target_length)), geometry.exponent_dim / 2
    return _growing(geometry, lambda i: math.exp(log_scale * ((i + 1) / pairs) ** exponent))


def ntk_constant(geometry: Geometry, target_length: int) -> Factors:
    """NTK to the critical pair c, and a constant H = 1.36 s from it on: lambda_i = H^(min(i, c) / c).

    The shape of the vector that LongRoPE2 published for LLaMA3-8B at 128k tokens (2502.20082, app. A).
    """
    height = max(LONGROPE2_HEIGHT * scale_of(geometry, target_length), 1.0)
    critical = max(geometry.critical_dimension // 2, 1)
    return _growing(geometry, lambda i: height ** (min(i, critical) / critical))


def entropy_abf(geometry: Geometry, target_length: int, base: float = RAISED_BASE) -> Factors:
    """Entropy-ABF adjusts the base to 500,000 (2401.07004, sec. 3).

    A model with a larger base keeps it, so no factor is below 1. The second half of the method, a factor on the queries
    that grows with the position, is not a RoPE factor and is left out.
    """
    return new_base(geometry, max(base, geometry.rope_theta))


def raised_base(geometry: Geometry, target_length: int, exponent: float = EXPONENT) -> Factors:
    """base' = base * s^1.2, above NTK-aware scaling's, with LongRoPE's attention factor, sqrt(1 + ln s / ln L).

    A form for pretrained models whose fastest pairs make hundreds of rotations in training. The exponent was chosen on
    two documents for SmolLM2 (135 million parameters, 8,192 tokens) at two times its length and one at four, without
    fine-tuning (``python -m bench.pretrained_forms``); no other pretrained model was tried. On models of a million
    parameters :func:`factor_search.methods.ramps.yarn_narrow` is better.

    Args:
        geometry: of the model.
        target_length: in tokens.
        exponent: of s; NTK-aware scaling has d / (d - 2).
    """
    scale = scale_of(geometry, target_length)
    rebased = new_base(geometry, geometry.rope_theta * max(scale, 1.0) ** exponent)
    return replace(rebased, attention_factor=longrope_attention_factor(scale, geometry.original_length))


def new_base(geometry: Geometry, base: float) -> Factors:
    """Express a new base as factors: lambda_i = (base' / base)^(2i/d)."""
    ratio = base / geometry.rope_theta
    return Factors.of([ratio ** (2 * i / geometry.exponent_dim) for i in range(geometry.pairs)])


def scale_of(geometry: Geometry, target_length: int) -> float:
    """s: the target length divided by the original length."""
    return target_length / geometry.original_length


def _growing(geometry: Geometry, factor: Callable[[int], float]) -> Factors:
    return Factors.of([factor(i) for i in range(geometry.pairs)])
