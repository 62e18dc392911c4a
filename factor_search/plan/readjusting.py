"""The search that readjusts long factors for short texts on an extended model (LongRoPE, 2402.13753, sec. 3.3)."""

import numpy as np

from factor_search.factors_file import FactorsFile
from factor_search.spec import JobSpec, KnownFactors, SpaceSpec, WarmStartSpec

LONG = "long"
"""The name under which reports show the long factors at the original length."""
BETWEEN = (0.75, 0.5, 0.25)
"""Powers of the long factors to start from: on a logarithmic scale, so far from 1."""


def readjusting_job(job: JobSpec, long: FactorsFile, source: str) -> JobSpec:
    """The job as a search for factors that make a pair with long ones.

    Bounds, curves and formulas are those of the long factors' scale. The attention factor is theirs, since a
    configuration has one for both; none of a pair can keep initial tokens.

    Args:
        job: at the original length.
        long: the factors in force for long texts.
        source: their name, for people.
    """
    lambdas = np.asarray(long.rescale_factors)
    shared = {"attention_factor": long.attention_factor, "scale": long.scale}
    known = [KnownFactors(source=source, rescale_factors=long.rescale_factors, compare_as=LONG, **shared)]
    known += [
        KnownFactors(source=f"{source}, to the power of {power}", rescale_factors=(lambdas**power).tolist(), **shared)
        for power in BETWEEN
    ]
    space = SpaceSpec(initial_tokens=[0], attention_factor=long.attention_factor, scale=long.scale)
    return job.model_copy(update={"space": space, "warm_start": WarmStartSpec(factors=known)})
