"""The base class of all specifications, and the numbers they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Int = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
PositiveInt = Annotated[int, Field(strict=True, gt=0, lt=2**53)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Base of all specifications: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
