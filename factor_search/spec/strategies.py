"""The settings of each search strategy."""

from typing import Annotated, Literal

from pydantic import Field

from factor_search.spec.base import AtMost, Count, Int, Population, PositiveFloat, Steps, Strict


class EvolutionSpec(Strict):
    """The evolutionary search of the LongRoPE paper (2402.13753, algorithm 1)."""

    kind: Literal["evolution"] = "evolution"
    population: Population = Field(64, description="P: candidates of the first generation.")
    parents: Population = Field(32, description="k: best candidates, from which the next generation is bred.")
    mutants: Population = Field(16, description="N1: mutants per generation.")
    crossovers: Annotated[Int, AtMost(100_000)] = Field(16, description="N2: crossovers per generation.")
    mutation_rate: float = Field(0.3, strict=True, gt=0, le=1, description="p: probability that a gene is redrawn.")
    generations: Steps = Field(40, description="T: generations after the first.")


class AutoSpec(Strict):
    """Starts with few parameters on few documents and increases both; it does not depend on the budget."""

    kind: Literal["auto"] = "auto"


class _Curve(Strict):
    knots: Count = Field(8, ge=2, description="Knots of the curve of log lambda over the rotary pairs.")


class CmaSpec(_Curve):
    """CMA-ES over a non-decreasing curve of log lambda, starting at the best closed form."""

    kind: Literal["cma"] = "cma"
    population: Population = Field(8, ge=4, description="Candidates per generation.")
    sigma: Annotated[PositiveFloat, AtMost(100.0)] = Field(0.25, description="Initial step size, in log lambda.")


class TpeSpec(_Curve):
    """Optuna's tree-structured Parzen estimator over a non-decreasing curve of log lambda."""

    kind: Literal["tpe"] = "tpe"
    population: Population = Field(8, description="Candidates per generation.")


class Nsga2Spec(_Curve):
    """Optuna's NSGA-II over a non-decreasing curve of log lambda.

    It minimises two objectives: the loss at the target length and the loss within the original length.
    """

    kind: Literal["nsga2"] = "nsga2"
    population: Population = Field(24, ge=4, description="Candidates per generation.")


class RandomSpec(_Curve):
    """Random curves of log lambda from the whole space: the baseline for every strategy."""

    kind: Literal["random"] = "random"
    population: Population = Field(16, description="Candidates per generation.")


StrategySpec = Annotated[
    AutoSpec | EvolutionSpec | CmaSpec | TpeSpec | Nsga2Spec | RandomSpec, Field(discriminator="kind")
]
