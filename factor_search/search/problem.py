"""The problem of a search, built once before its first candidate: space, closed forms and starting points."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.methods import METHODS, USUAL, closed_forms, untouched
from factor_search.model.geometry import Geometry
from factor_search.search.space import SearchSpace
from factor_search.search.strategies import Strategy, build_strategy
from factor_search.search.strategies.contract import Check, no_check
from factor_search.search.strategies.profile import reaches_far
from factor_search.search.warm_start import starting_points
from factor_search.spec import EvolutionSpec, JobSpec, WarmStartSpec

FORMS = tuple(METHODS)
"""Names of all closed forms that a new search knows."""
FORM_IF_FAR = "raised-base"
"""The closed form with which a search begins where pairs make as many rotations as those of pretrained models."""
SEED_ORDER = ("yarn", "ntk-critical", "ntk", "llama3", "pi", "dynamic-ntk", "entropy-abf", "as-configured", "none")
"""The usual closed forms in the order in which a search evaluates them, the most promising first; the others follow."""
OTHERS_COMPARED = 2
"""How many of the other closed forms a report compares with."""


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """A specification applied to one model, for the search, its report and the dashboard."""

    spec: JobSpec
    """The specification, with its warm starts embedded (see :func:`factor_search.search.warm_start.embedded`)."""
    geometry: Geometry
    space: SearchSpace
    methods: dict[str, Factors]
    """Factors with which the winner is compared, by name: the closed forms that the specification's ``baselines`` asks
    for, by default the usual ones, and known factors with ``compare_as``."""
    others: dict[str, Factors]
    """By default, the closed forms that are not usual, by name: the winner is also compared with the two that are best
    on the search documents (:meth:`best_others`). Empty where the specification has ``baselines``."""
    seeds: tuple[Factors, ...]
    """The starting points of the search: known factors first, then the usual closed forms, for
    pretrained models after :data:`FORM_IF_FAR`."""
    later_seeds: tuple[Factors, ...]
    """The other closed forms, which ``auto`` tries before CMA-ES; evolution leaves half of its first generation to
    mutants."""

    @classmethod
    def of(cls, spec: JobSpec, geometry: Geometry, forms: Collection[str] = FORMS) -> "SearchProblem":
        """Build the problem for a model with this geometry.

        Args:
            spec: what is searched.
            geometry: of the model.
            forms: names of the closed forms that the search starts from; those of :data:`USUAL` are always among them.
                A search that an earlier version began continues with those that it knew.

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
        compared = _compared(spec, methods)
        methods = {name: one for name, one in methods.items() if name not in METHODS or name in (*USUAL, *forms)}
        if spec.short_window is not None and spec.target_length <= geometry.original_length:
            raise SpecError("short_window: the target length must be above the original one")
        seeds, later = _seeds(spec, space, geometry, methods)
        others = {} if spec.baselines else {name: one for name, one in methods.items() if name not in compared}
        problem = cls(
            spec=spec,
            geometry=geometry,
            space=space,
            methods=compared,
            others=others,
            seeds=seeds,
            later_seeds=later,
        )
        if spec.short_window is not None:
            name, factors = problem.untouched
            problem = replace(problem, methods=problem.methods | {name: factors})
        return problem

    @property
    def forms(self) -> dict[str, Factors]:
        """All factors with which the winner may be compared, by name."""
        return self.methods | self.others

    @property
    def forms_compared(self) -> int:
        """How many the winner will be compared with."""
        return len(self.methods) + min(OTHERS_COMPARED, len(self.others))

    @property
    def untouched(self) -> tuple[str, Factors]:
        """The model as it is within its original length: its name among the closed forms, and its factors.

        Raises:
            SpecError: its scaling depends on the length, so it is none of them.
        """
        as_it_is = untouched(self.geometry)
        for name, factors in _methods(self.spec, self.geometry).items():
            if factors == as_it_is:
                return name, factors
        raise SpecError("short_window: the scaling of this model depends on the length, so no limit can refer to it")

    def may_win(self, factors: Factors) -> bool:
        """Whether factors are what was searched for: with a form, those that it can express."""
        return self.space.form is None or self.space.form.numbers(factors) is not None

    def evaluations_of(
        self, forms: Mapping[str, Factors], known: Mapping[Factors, Evaluation]
    ) -> dict[str, Evaluation]:
        """Find the evaluations of closed forms among those of a search; strategies evaluate the nearest of the space.

        Args:
            forms: closed forms by name.
            known: evaluations on the search documents.
        """
        nearest = forms
        if self.space.form is None:
            nearest = {name: self.space.factors(self.space.project(form)) for name, form in forms.items()}
        found = {name: known.get(nearest[name]) or known.get(form) for name, form in forms.items()}
        return {name: evaluation for name, evaluation in found.items() if evaluation is not None}

    def best_others(self, known: Mapping[Factors, Evaluation]) -> dict[str, Factors]:
        """The two of ``others`` that are best on the search documents, in the order of their loss.

        They are compared on the documents on which all of them were evaluated; races may have stopped some early.
        """
        losses = {name: one.losses for name, one in self.evaluations_of(self.others, known).items() if one.losses}
        documents = min(map(len, losses.values()), default=0)
        ranked = sorted(losses, key=lambda name: sum(losses[name][:documents]))
        return {name: self.others[name] for name in ranked[:OTHERS_COMPARED]}

    def strategy(self, documents: int, check: Check = no_check) -> Strategy:
        """Build a new strategy from the specification.

        Args:
            documents: number of search documents.
            check: called while the strategy proposes; may raise to stop it.
        """
        spec, seeds, later = self.spec, self.seeds, self.later_seeds
        return build_strategy(
            spec.strategy, self.space, seeds, spec.seed, documents=documents, check=check, later=later
        )


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
    """Keep the closed forms that are asked for, and the named known factors."""
    if spec.baselines == "all":
        return methods
    named = [known.compare_as for known in spec.warm_start.factors if known.compare_as is not None]
    forms = [name for name in methods if name not in named]
    if spec.baselines is None:
        return {name: factors for name, factors in methods.items() if name in (*USUAL, *named)}
    if unknown := [name for name in spec.baselines if name not in forms]:
        raise SpecError(
            f"baselines: {unknown[0]!r} is not a closed form of this model: choose among {', '.join(forms)}"
        )
    return {name: factors for name, factors in methods.items() if name in (*spec.baselines, *named)}


def _seeds(
    spec: JobSpec, space: SearchSpace, geometry: Geometry, methods: dict[str, Factors]
) -> tuple[tuple[Factors, ...], tuple[Factors, ...]]:
    known = starting_points(spec.warm_start, geometry, _formula_length(spec, geometry))
    usual = [methods[name] for name in SEED_ORDER if name in methods]
    others = {name: methods[name] for name in METHODS if name in methods and name not in SEED_ORDER}
    if isinstance(spec.strategy, EvolutionSpec):
        population, first = spec.strategy.population, len(known) + len(usual)
        if known and population < first:
            raise SpecError(
                f"strategy.population is {population}, but {len(known)} warm starts and {len(usual)} closed forms come "
                f"first: make it {first} or more"
            )
        rest = list(others.values())[: max(population // 2 - first, 0)]  # the rest of the first generation are mutants
        return (*known, *usual), tuple(rest)
    if reaches_far(space) and FORM_IF_FAR in others:
        usual.insert(0, others.pop(FORM_IF_FAR))
    return (*known, *usual), tuple(others.values())


def _formula_length(spec: JobSpec, geometry: Geometry) -> int:
    """Return the target length for which closed forms and known factors are computed, in tokens."""
    return spec.target_length if spec.space.scale is None else round(spec.space.scale * geometry.original_length)
