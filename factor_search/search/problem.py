"""What a search has to work with before its first candidate: the space, the closed forms, and where it starts."""

from dataclasses import dataclass

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.methods import closed_forms
from factor_search.model.geometry import Geometry
from factor_search.search.space import SearchSpace
from factor_search.search.strategies import Strategy, build_strategy
from factor_search.search.warm_start import starting_points
from factor_search.spec import EvolutionSpec, JobSpec, WarmStartSpec

SEED_ORDER = ("yarn", "ntk-critical", "ntk", "llama3", "pi", "dynamic-ntk", "entropy-abf", "as-configured", "none")
"""Closed forms in the order in which a search evaluates them, the most promising first."""


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """A specification applied to one model; made once and used by the search, its report and the dashboard."""

    spec: JobSpec
    """With the content of its warm starts (see :func:`factor_search.search.warm_start.embedded`)."""
    geometry: Geometry
    space: SearchSpace
    methods: dict[str, Factors]
    """What is measured beside the winner, by name: every closed form, and known factors with a name to compare as."""
    seeds: tuple[Factors, ...]
    """Where the search starts: known factors first, then every closed form."""

    @classmethod
    def of(cls, spec: JobSpec, geometry: Geometry) -> "SearchProblem":
        """The problem that a specification poses for a model with this geometry.

        Raises:
            FactorsError: known factors belong to another model.
            SpecError: the space does not fit the model, known factors have the name of a closed form, or they leave no
                room for the closed forms.
        """
        assert not spec.warm_start.files, "read before a search begins"
        assert not spec.warm_start.jobs, "looked up before a search begins"
        space = SearchSpace.of(spec, geometry)
        methods = _methods(spec, geometry)
        return cls(spec=spec, geometry=geometry, space=space, methods=methods, seeds=_seeds(spec, geometry, methods))

    def strategy(self, documents: int) -> Strategy:
        """The strategy that the specification asks for, at its beginning.

        Args:
            documents: number of search documents.
        """
        return build_strategy(self.spec.strategy, self.space, self.seeds, self.spec.seed, documents=documents)


def _methods(spec: JobSpec, geometry: Geometry) -> dict[str, Factors]:
    """Closed forms and named known factors.

    Where the space has a scale of its own, closed forms are those for that scale, with the attention factor that the
    space has if it has a single one: only so could they take the winner's place.
    """
    length = _formula_length(spec, geometry)
    forms = closed_forms(geometry, length)
    if spec.space.scale is not None and isinstance(spec.space.attention_factor, float):
        attention = spec.space.attention_factor
        forms = {name: Factors(one.rescale_factors, one.initial_tokens, attention) for name, one in forms.items()}
    for known in spec.warm_start.factors:
        if known.compare_as in forms:
            raise SpecError(f"warm_start: {known.compare_as} cannot be the name of known factors, it is taken")
        if known.compare_as is not None:
            forms[known.compare_as], *_ = starting_points(WarmStartSpec(factors=[known]), geometry, length)
    return forms


def _seeds(spec: JobSpec, geometry: Geometry, methods: dict[str, Factors]) -> tuple[Factors, ...]:
    known = starting_points(spec.warm_start, geometry, _formula_length(spec, geometry))
    forms = [methods[name] for name in SEED_ORDER if name in methods]
    if known and isinstance(spec.strategy, EvolutionSpec) and spec.strategy.population < len(known) + len(forms):
        raise SpecError(
            f"strategy.population is {spec.strategy.population}, but {len(known)} warm starts and {len(forms)} closed "
            f"forms come first: make it {len(known) + len(forms)} or more"
        )
    return (*known, *forms)


def _formula_length(spec: JobSpec, geometry: Geometry) -> int:
    """The length that closed forms and factors to start from are for."""
    return spec.target_length if spec.space.scale is None else round(spec.space.scale * geometry.original_length)
