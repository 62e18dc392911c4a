"""The search space: bounds and grid of lambda, choices of initial tokens and attention factors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.methods import longrope_attention_factor, yarn_attention_factor
from factor_search.model.geometry import Geometry
from factor_search.search.forms import FormSpace
from factor_search.spec import JobSpec, SpaceSpec

UPPER_BOUND = 1.25
"""Upper bound of lambda as a multiple of the scale, in the LongRoPE paper (2402.13753, table 4)."""
UPPER_BOUND_BEYOND = 8.0
"""Upper bound for strategies that search smooth curves; the best factors often exceed the paper's bound."""


@dataclass(frozen=True)
class Genome:
    """A candidate in grid units, which can be compared and hashed exactly."""

    levels: tuple[int, ...]
    """lambda_i = 1 + step * level_i."""
    initial_tokens: int
    """Index into the space's choices of initial tokens."""
    attention: int
    """Index into the space's attention factors."""
    critical: int = field(default=0, compare=False)
    """Index into the space's critical pairs; it says how the levels were made, so it is not part of the identity."""


@dataclass(frozen=True)
class SearchSpace:
    """LongRoPE's space (2402.13753, table 4): lambda_i in [1, upper_bound * s] on a grid, non-decreasing in i."""

    pairs: int
    step: float
    top_level: int
    """Largest level; lambda never exceeds its bound."""
    monotone: bool
    initial_tokens: tuple[int, ...]
    """Choices of the number of initial tokens, ascending."""
    attention_factors: tuple[float, ...]
    """Choices, ascending; a single one unless the attention factor is searched."""
    critical_pairs: tuple[int, ...] = (0,)
    """Choices of the first free pair, ascending. Earlier pairs follow NTK (LongRoPE2, 2502.20082, sec. 3)."""
    rotations: tuple[float, ...] = ()
    """Rotations of each pair within the original length."""
    scale: float = 1.0
    """Target length / original length, unless the specification gives another scale."""
    first_attention: float | None = None
    """Attention factor with which a search begins where it is searched; None is YaRN's."""
    form: FormSpace | None = field(default=None, compare=False)
    """A closed form whose numbers are searched; its candidates lie on no grid."""

    @classmethod
    def of(cls, spec: JobSpec, geometry: Geometry) -> "SearchSpace":
        """Build the space of a job; the strategies auto and cma have a larger default for the upper bound.

        A default bound is never below the factors that the model is configured with.

        Raises:
            SpecError: see :meth:`build`.
        """
        upper_bound = UPPER_BOUND_BEYOND if spec.strategy.kind in ("auto", "cma") else UPPER_BOUND
        configured = geometry.configured_factors(spec.target_length)
        if configured is not None:  # the space contains the model as it is
            scale = spec.space.scale or max(spec.target_length / geometry.original_length, 1.0)
            upper_bound = max(upper_bound, (max(configured.rescale_factors) + spec.space.step / 2) / scale)
        space = spec.space.model_copy(update={"upper_bound": spec.space.upper_bound or upper_bound})
        built = cls.build(space, geometry, spec.target_length)
        # Most of what factors cost in short texts is their attention factor.
        return built if spec.short_window is None else replace(built, first_attention=1.0)

    @classmethod
    def build(cls, spec: SpaceSpec, geometry: Geometry, target_length: int) -> "SearchSpace":
        """Build the space for one model and target length, without choices of initial tokens above the original length.

        Raises:
            SpecError: the target length is not above the original length and the specification gives no scale; or all
                choices of initial tokens are above the original length; or the critical dimension leaves no pair free.
        """
        original = geometry.original_length
        if target_length <= original and spec.scale is None:
            raise SpecError(
                f"target_length is {target_length}, but the model's original length is {original}: the target must be "
                "larger"
            )
        initial_tokens = sorted({count for count in spec.initial_tokens if count <= original})
        if not initial_tokens:
            raise SpecError(f"every choice of space.initial_tokens is beyond the original length of {original} tokens")
        scale = spec.scale or target_length / original
        return cls(
            pairs=geometry.pairs,
            step=spec.step,
            top_level=math.floor(((spec.upper_bound or UPPER_BOUND) * scale - 1) / spec.step + 1e-9),
            monotone=spec.monotone,
            initial_tokens=tuple(initial_tokens),
            attention_factors=_attention_factors(spec, scale, original),
            critical_pairs=_critical_pairs(spec, geometry),
            rotations=tuple(original / wavelength for wavelength in geometry.wavelengths),
            scale=scale,
            form=_form(spec, geometry, scale),
        )

    def factors(self, genome: Genome) -> Factors:
        """Return the candidate that a genome represents."""
        return Factors(
            tuple(round(1 + self.step * level, 10) for level in genome.levels),
            self.initial_tokens[genome.initial_tokens],
            self.attention_factors[genome.attention],
        )

    def project(self, factors: Factors) -> Genome:
        """Return the nearest genome: rounded to the grid, clipped to the bounds, non-decreasing by a running maximum.

        If the space has several critical pairs, the one that changes log lambda least is chosen.
        """
        raw = np.rint((np.asarray(factors.rescale_factors) - 1) / self.step)
        levels = np.clip(raw, 0, self.top_level).astype(int)
        if self.monotone:
            levels = np.maximum.accumulate(levels)
        genome = Genome(
            tuple(levels.tolist()),
            _nearest(self.initial_tokens, factors.initial_tokens),
            _nearest(self.attention_factors, factors.attention_factor),
        )
        restricted = [self.restrict(replace(genome, critical=index)) for index in range(len(self.critical_pairs))]
        return min(restricted, key=lambda one: self._distance(one.levels, genome.levels))

    def restrict(self, genome: Genome) -> Genome:
        """Let the pairs before the critical pair follow NTK, rounded to the grid: lambda_i = lambda_rcd^(i / i_rcd)."""
        critical = self.critical_pairs[genome.critical]
        if critical == 0:
            return genome
        top = 1 + self.step * genome.levels[critical]
        before = np.rint((top ** (np.arange(critical) / critical) - 1) / self.step).astype(int)
        return replace(genome, levels=(*before.tolist(), *genome.levels[critical:]))

    def gene_bounds(self, levels: Sequence[int], i: int, critical: int = 0) -> tuple[int, int]:
        """Return the lowest and the highest level that gene i, at or behind the critical pair, may take."""
        if not self.monotone:
            return 0, self.top_level
        return levels[i - 1] if i > critical else 0, levels[i + 1] if i + 1 < self.pairs else self.top_level

    def _distance(self, one: Sequence[int], other: Sequence[int]) -> float:
        ratios = (1 + self.step * np.asarray(one)) / (1 + self.step * np.asarray(other))
        return float(np.sum(np.log(ratios) ** 2))


def _form(spec: SpaceSpec, geometry: Geometry, scale: float) -> FormSpace | None:
    if spec.form is None:
        return None
    if spec.attention_factor == "search":
        return FormSpace(spec.form, geometry, scale, None)
    by_formula = spec.attention_factor == "formula"
    return FormSpace(
        spec.form, geometry, scale, yarn_attention_factor(scale) if by_formula else float(spec.attention_factor)
    )


def _critical_pairs(spec: SpaceSpec, geometry: Geometry) -> tuple[int, ...]:
    if spec.critical_dimension is None:
        return (0,)
    last = geometry.pairs - 1
    if spec.critical_dimension == "search":
        theoretical = min(geometry.critical_dimension // 2, last)
        return tuple(range(max(theoretical // 2, 1), max(theoretical, 1) + 1)) if last else (0,)
    if spec.critical_dimension // 2 > last:
        raise SpecError(
            f"space.critical_dimension is {spec.critical_dimension}, but the model has {geometry.rotary_dim} rotary "
            f"dimensions: at most {2 * last} leaves a pair free"
        )
    return (spec.critical_dimension // 2,)


def _attention_factors(spec: SpaceSpec, scale: float, original_length: int) -> tuple[float, ...]:
    if spec.attention_factor == "formula":
        return (longrope_attention_factor(scale, original_length),)
    if spec.attention_factor == "search":
        # From 1 (no correction) to twice YaRN's correction in steps of 0.01; both formulas lie well inside.
        steps = max(1, round(200 * (yarn_attention_factor(scale) - 1)))
        return tuple(round(1 + 0.01 * n, 10) for n in range(steps + 1))
    return (float(spec.attention_factor),)


def _nearest(choices: Sequence[float], value: float) -> int:
    return min(range(len(choices)), key=lambda index: abs(choices[index] - value))
