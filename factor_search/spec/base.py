"""The base class of all specifications, and the numbers they share, with the limits that their meaning gives them.

A limit is far beyond what a laboratory asks for, so that it refuses mistakes alone: a number with three zeros too many,
or one that would fill the memory of a coordinator. Limits hold for what is asked; what was stored before a limit
existed is still read (see :data:`STORED`).
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

STORED = {"stored": True}
"""The context of a validation that reads what was validated when it was submitted, perhaps by an earlier version."""


@dataclass(frozen=True)
class AtMost:
    """The limit of a number, which does not hold in the context :data:`STORED`."""

    most: int | float
    unit: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        document = handler(schema)
        document.pop("exclusiveMaximum", None)
        return document | {"maximum": self.most}

    def _checked(self, value: Any, information: ValidationInfo) -> Any:
        if value > self.most and not (information.context or {}).get("stored"):
            raise ValueError(f"{value:,} is too large: at most {self.most:,}{f' {self.unit}' if self.unit else ''}")
        return value


Int = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
PositiveInt = Annotated[int, Field(strict=True, gt=0, lt=2**53)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

Tokens = Annotated[PositiveInt, AtMost(2**27, "tokens")]
Documents = Annotated[PositiveInt, AtMost(100_000, "documents")]
Candidates = Annotated[PositiveInt, AtMost(10**7, "candidates")]
Population = Annotated[PositiveInt, AtMost(100_000, "candidates in a generation")]
Steps = Annotated[PositiveInt, AtMost(10**8, "steps")]
Count = Annotated[PositiveInt, AtMost(100_000)]
Scale = Annotated[PositiveFloat, AtMost(1e6)]
RescaleFactor = Annotated[PositiveFloat, AtMost(1e9)]
AttentionFactor = Annotated[PositiveFloat, AtMost(1000.0)]


class Strict(BaseModel):
    """Base of all specifications: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
