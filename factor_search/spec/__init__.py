"""What a user asks for: one specification for files, the command line and the REST interface.

Unknown keys are errors. Where one word, list or number is enough, it may replace the object.
"""

from factor_search.spec.base import Int, PositiveFloat, PositiveInt, Strict
from factor_search.spec.job import (
    AnyBudget,
    AnyData,
    AnyModel,
    AnyObjective,
    AnyStrategy,
    Baselines,
    BudgetSpec,
    JobSpec,
    RacingSpec,
    ResourcesSpec,
    parse_model,
    parse_spec,
    read_spec,
)
from factor_search.spec.problem import (
    INITIAL_TOKENS,
    MEASURES,
    DataSpec,
    ModelSpec,
    NeedleSpec,
    ObjectiveSpec,
    PerplexitySpec,
    SpaceSpec,
    looks_local,
)
from factor_search.spec.strategies import (
    AutoSpec,
    CmaSpec,
    EvolutionSpec,
    Nsga2Spec,
    RandomSpec,
    StrategySpec,
    TpeSpec,
)
from factor_search.spec.warm_start import KnownFactors, WarmStartSpec

__all__ = [
    "INITIAL_TOKENS",
    "MEASURES",
    "AnyBudget",
    "AnyData",
    "AnyModel",
    "AnyObjective",
    "AnyStrategy",
    "AutoSpec",
    "Baselines",
    "BudgetSpec",
    "CmaSpec",
    "DataSpec",
    "EvolutionSpec",
    "Int",
    "JobSpec",
    "KnownFactors",
    "ModelSpec",
    "NeedleSpec",
    "Nsga2Spec",
    "ObjectiveSpec",
    "PerplexitySpec",
    "PositiveFloat",
    "PositiveInt",
    "RacingSpec",
    "RandomSpec",
    "ResourcesSpec",
    "SpaceSpec",
    "StrategySpec",
    "Strict",
    "TpeSpec",
    "WarmStartSpec",
    "looks_local",
    "parse_model",
    "parse_spec",
    "read_spec",
]
