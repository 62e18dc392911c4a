"""The search that readjusts long factors for short texts on an extended model (LongRoPE, 2402.13753, sec. 3.3)."""

from typing import Literal

import numpy as np

from factor_search.factors_file import FactorsFile
from factor_search.spec import JobSpec, KnownFactors, PerplexitySpec, SpaceSpec, WarmStartSpec

LONG = "long"
"""The name under which reports show the long factors at the original length."""
MOST_WINDOWS = 8
"""Windows of the original length, one after the other from the beginning of each document, by which short texts are
judged: the first alone has too few tokens to tell candidates apart."""
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
    length = job.target_length
    objective = PerplexitySpec(stride=length, tokens=short_tokens(length, job.data.least_tokens or length))
    attention = long.attention_factor if attention_factor == "long" else attention_factor
    space = SpaceSpec(initial_tokens=[0], attention_factor=attention, scale=long.scale)
    return job.model_copy(update={"objective": objective, "space": space, "warm_start": WarmStartSpec(factors=known)})


def short_tokens(original_length: int, document_tokens: int) -> int:
    """Tokens at the beginning of a document, in whole windows of the original length, by which short texts are judged.

    Args:
        original_length: of the model, in tokens.
        document_tokens: that every document has.
    """
    return original_length * max(1, min(MOST_WINDOWS, document_tokens // original_length))
