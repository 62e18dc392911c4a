"""Known factors from which a search starts."""

from typing import Annotated

from pydantic import Field, model_validator

from factor_search.spec.base import (
    AtMost,
    AttentionFactor,
    Count,
    Int,
    PositiveFloat,
    RescaleFactor,
    Scale,
    Strict,
)
from factor_search.spec.named import Names, Text

MOST_PAIRS = 50_000
"""Rotary pairs of any model: half of its head dimension."""


class KnownFactors(Strict):
    """Known factors, with their scale and the RoPE that they belong to."""

    source: Text = Field(max_length=4096, description="Where the factors come from, for people.")
    rescale_factors: list[RescaleFactor] = Field(
        min_length=1, max_length=MOST_PAIRS, description="lambda_i of each rotary pair."
    )
    initial_tokens: Annotated[Int, AtMost(2**27, "tokens")] = Field(
        0, description="Leading positions that keep the model's own RoPE."
    )
    attention_factor: AttentionFactor | None = Field(None, description="Null is LongRoPE's formula.")
    scale: Scale | None = Field(
        None, description="Target length / original length of the factors; null is the scale of this job."
    )
    rotary_dim: Count | None = Field(None, description="Rotary dimensions of their model, if known.")
    rope_theta: Annotated[PositiveFloat, AtMost(1e30)] | None = Field(
        None, description="RoPE base of their model, if known."
    )
    original_length: Count | None = Field(
        None, description="Original length of their model, if known: then they can be carried to another model."
    )
    compare_as: Text | None = Field(
        None,
        min_length=1,
        max_length=60,
        description="Name under which the factors are measured together with the closed forms.",
    )


MOST_WARM_STARTS = 15
"""So many warm starts and the closed forms fit into the first generation of ``auto``."""


class WarmStartSpec(Strict):
    """Known factors from which a search starts, besides the closed forms; they are rescaled to the scale of the job."""

    files: Annotated[list[str], Names.FILES] = Field(
        default=[],
        description="factors.json files, JSON lists of rescale factors, or Hugging Face configurations with a "
        "longrope long_factor. They are read once, and their content is stored in `factors`.",
    )
    jobs: list[Text] = Field(
        default=[],
        description="Ids of finished jobs of the same service, on a model with the same RoPE. Their factors are stored "
        "in `factors` when this job is submitted.",
    )
    rescale_factors: list[Annotated[list[RescaleFactor], Field(max_length=MOST_PAIRS)]] = Field(
        default=[], description="Vectors with one factor per rotary pair, for the target length of this job."
    )
    factors: list[KnownFactors] = Field(
        default=[], description="Content of `files` and `jobs` at the time of submission; may also be given directly."
    )

    @model_validator(mode="after")
    def _few(self) -> "WarmStartSpec":
        count = len(self.files) + len(self.jobs) + len(self.rescale_factors) + len(self.factors)
        if count > MOST_WARM_STARTS:
            raise ValueError(f"{count} warm starts are too many: choose the best {MOST_WARM_STARTS}")
        return self
