"""The search that readjusts long factors for short texts on an extended model (LongRoPE, 2402.13753, sec. 3.3)."""

from typing import Literal

import numpy as np

from factor_search.factors_file import FactorsFile
from factor_search.spec import JobSpec, KnownFactors, SpaceSpec, WarmStartSpec

LONG = "long"
"""The name under which reports show the long factors at the original length."""
POWERS = (1, 0.75, 0.5, 0.25)
"""Of the long factors to start from: on a logarithmic scale, so far from 1, which closed forms begin with."""


def readjusting_job(
    job: JobSpec, long: FactorsFile, source: str, attention_factor: Literal["long", "search"] | float = "long"
) -> JobSpec:
    """The job as a search for factors that make a pair with long ones.

    Bounds, curves and formulas are those of the long factors' scale; none of a pair can keep initial tokens.

    Args:
        job: at the original length.
        long: the factors in force for long texts.
        source: their name, for people.
        attention_factor: theirs, searched, or a number.
    """
    lambdas = np.asarray(long.rescale_factors)
    known = [
        KnownFactors(
            source=source if power == 1 else f"{source}, to the power of {power}",
            rescale_factors=(lambdas**power).tolist(),
            attention_factor=long.attention_factor**power,
            scale=long.scale,
            compare_as=LONG if power == 1 else None,
        )
        for power in POWERS
    ]
    attention = long.attention_factor if attention_factor == "long" else attention_factor
    space = SpaceSpec(initial_tokens=[0], attention_factor=attention, scale=long.scale)
    return job.model_copy(update={"space": space, "warm_start": WarmStartSpec(factors=known)})
