"""The problem of a search, built once before its first candidate: space, closed forms and starting points."""

from dataclasses import dataclass

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.methods import METHODS, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.search.space import SearchSpace
from factor_search.search.strategies import Strategy, build_strategy
from factor_search.search.strategies.contract import Check, no_check
from factor_search.search.warm_start import starting_points
from factor_search.spec import EvolutionSpec, JobSpec, WarmStartSpec

SEED_ORDER = ("yarn", "ntk-critical", "ntk", "llama3", "pi", "dynamic-ntk", "entropy-abf", "as-configured", "none")
"""The closed forms in the order in which a search evaluates them, the most promising first."""


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """A specification applied to one model, for the search, its report and the dashboard."""

    spec: JobSpec
    """The specification, with its warm starts embedded (see :func:`factor_search.search.warm_start.embedded`)."""
    geometry: Geometry
    space: SearchSpace
    methods: dict[str, Factors]
    """Factors with which the winner is compared, by name: the closed forms among the specification's ``baselines``,
    and known factors with ``compare_as``."""
    seeds: tuple[Factors, ...]
    """The starting points of the search: known factors first, then all closed forms."""

    @classmethod
    def of(cls, spec: JobSpec, geometry: Geometry) -> "SearchProblem":
        """Build the problem for a model with this geometry.

        Raises:
            FactorsError: known factors belong to another model.
            UnsupportedModelError: nothing can be searched for the model, saying why.
            SpecError: the space does not fit the model, a baseline is not a closed form of the model, known factors
                have the name of a closed form, or there are so many of them that the closed forms do not fit into the
                first generation.
        """
        assert not spec.warm_start.files, "read before a search begins"
        assert not spec.warm_start.jobs, "looked up before a search begins"
        geometry.check_searchable()
        space = SearchSpace.of(spec, geometry)
        methods = _methods(spec, geometry)
        seeds = _seeds(spec, geometry, methods)
        return cls(spec=spec, geometry=geometry, space=space, methods=_compared(spec, methods), seeds=seeds)

    def strategy(self, documents: int, check: Check = no_check) -> Strategy:
        """Build a new strategy from the specification.

        Args:
            documents: number of search documents.
            check: called while the strategy proposes; may raise to stop it.
        """
        spec = self.spec
        return build_strategy(spec.strategy, self.space, self.seeds, spec.seed, documents=documents, check=check)


def _methods(spec: JobSpec, geometry: Geometry) -> dict[str, Factors]:
    """Return the closed forms and the named known factors.

    If the specification gives a scale, the closed forms are those for that scale, with the attention factor of the
    space if it is fixed. Otherwise they would not be valid winners.
    """
    length = _formula_length(spec, geometry)
    forms = closed_forms(geometry, length)
    if spec.space.scale is not None and isinstance(spec.space.attention_factor, float):
        attention = spec.space.attention_factor
        forms = {name: Factors(one.rescale_factors, one.initial_tokens, attention) for name, one in forms.items()}
    for known in spec.warm_start.factors:
        if known.compare_as in forms:
            raise SpecError(f"warm_start: {known.compare_as} cannot be the name of known factors, it is taken already")
        if known.compare_as is not None:
            forms[known.compare_as], *_ = starting_points(WarmStartSpec(factors=[known]), geometry, length)
    return forms


def _compared(spec: JobSpec, methods: dict[str, Factors]) -> dict[str, Factors]:
    """Keep the closed forms among the baselines, and the named known factors."""
    if spec.baselines is None:
        return methods
    named = [known.compare_as for known in spec.warm_start.factors if known.compare_as is not None]
    forms = [name for name in methods if name not in named]
    if unknown := [name for name in spec.baselines if name not in forms]:
        raise SpecError(
            f"baselines: {unknown[0]!r} is not a closed form of this model: choose among {', '.join(forms)}"
        )
    return {name: factors for name, factors in methods.items() if name in (*spec.baselines, *named)}


def _seeds(spec: JobSpec, geometry: Geometry, methods: dict[str, Factors]) -> tuple[Factors, ...]:
    known = starting_points(spec.warm_start, geometry, _formula_length(spec, geometry))
    names = [*(name for name in SEED_ORDER if name in methods), *(name for name in METHODS if name not in SEED_ORDER)]
    forms = [methods[name] for name in names]
    if known and isinstance(spec.strategy, EvolutionSpec) and spec.strategy.population < len(known) + len(forms):
        raise SpecError(
            f"strategy.population is {spec.strategy.population}, but {len(known)} warm starts and {len(forms)} closed "
            f"forms come first: make it {len(known) + len(forms)} or more"
        )
    return (*known, *forms)


def _formula_length(spec: JobSpec, geometry: Geometry) -> int:
    """Return the target length for which closed forms and known factors are computed, in tokens."""
    return spec.target_length if spec.space.scale is None else round(spec.space.scale * geometry.original_length)
