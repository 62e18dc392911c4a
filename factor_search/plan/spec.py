"""What a user asks of a plan: a model, documents, and stages or the name of a recipe; unknown keys are errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from factor_search.errors import SpecError
from factor_search.files.json_documents import explain, read_json
from factor_search.plan.kinds import StageSpec, kind_of
from factor_search.plan.recipes import RECIPES
from factor_search.plan.references import resolved
from factor_search.spec import STORED, AnyData, AnyModel, Int, Strict, Tokens, Trackers, Webhooks
from factor_search.spec.named import Names, Text

MOST_STAGES = 32


class PlanSpec(Strict):
    """An ordered list of stages, each of which may use the results of those before it."""

    name: Text = Field("plan", min_length=1, max_length=100, description="For people; not interpreted.")
    model: AnyModel
    data: AnyData = Field(
        description="Of all stages: split once, so that documents held out in one stage are held out in all."
    )
    training_files: Annotated[list[str] | None, Names.DOCUMENTS] = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="Documents to fine-tune on; null is all those of 'data' that no stage searches or measures on. "
        "Documents that one does are never trained on.",
    )
    recipe: Literal["longrope", "longrope2"] | None = Field(
        None,
        description="Stages by one word, instead of a list. longrope: search and fine-tune at a middle length, search "
        "again at the target length, readjust for short texts, evaluate, export. longrope2: search the critical "
        "dimension with needles, fine-tune with mixed windows, evaluate, export.",
    )
    target_length: Tokens | None = Field(None, description="Of a recipe: tokens of context wanted in the end.")
    middle_length: Tokens | None = Field(
        None, description="Of longrope: tokens of its first search and fine-tuning; null is a quarter of the target."
    )
    stages: list[StageSpec] | None = Field(None, min_length=1, max_length=MOST_STAGES, description="In their order.")
    seed: Int = Field(0, description="Of all searches and of the choice of documents.")
    trackers: Trackers = Field([])
    webhooks: Webhooks = Field([])

    @model_validator(mode="after")
    def _possible(self) -> "PlanSpec":
        if (self.recipe is None) == (self.stages is None):
            raise ValueError("give either 'recipe' or 'stages'")
        if self.recipe is None and (self.target_length or self.middle_length):
            raise ValueError("target_length and middle_length go with a recipe: stages have lengths of their own")
        if self.recipe is not None and self.target_length is None:
            raise ValueError("a recipe needs a target_length")
        if self.middle_length is not None and self.recipe != "longrope":
            raise ValueError("only the recipe 'longrope' has a middle_length")
        plan = self.expanded()
        original, least = self.model.original_length, self.data.least_tokens
        if original is not None:
            for stage in plan.stages or ():
                kind_of(stage).check_original_length(stage, original)
        if least is not None and least < plan.longest:
            raise ValueError(
                f"data.least_tokens is {least}, but the plan goes up to {plan.longest} tokens: documents need as many"
            )
        return self

    def expanded(self) -> "PlanSpec":
        """The same plan without a recipe: every stage listed, with its name and the stages it refers to."""
        stages = self.stages
        if self.recipe is not None:
            assert self.target_length is not None
            stages = RECIPES[self.recipe](self.target_length, self.middle_length, self.seed)
        return self.model_copy(
            update={
                "recipe": None,
                "target_length": None,
                "middle_length": None,
                "stages": resolved(stages or ()),
            }
        )

    @property
    def longest(self) -> int:
        """The largest length of any stage in tokens, which every document that is used must have."""
        stages = self.stages if self.stages is not None else self.expanded().stages or ()
        return max((length for stage in stages for length in stage.lengths_read), default=0)


def is_plan(document: Any) -> bool:
    """Whether a JSON document is meant as a plan, not as a job."""
    return isinstance(document, Mapping) and ("stages" in document or "recipe" in document)


def parse_plan(document: Any, *, stored: bool = False) -> PlanSpec:
    """Validate a plan given as a JSON object.

    Args:
        document: the plan.
        stored: it was validated when it was submitted, so that limits of numbers do not hold.

    Raises:
        SpecError: naming every offending key and why.
    """
    try:
        return PlanSpec.model_validate(document, context=STORED if stored else None)
    except ValidationError as error:
        raise SpecError(f"the plan is not valid: {explain(error)}") from None


def read_plan(file: Path) -> PlanSpec:
    """Read a plan; relative paths in it are taken from the current folder.

    Raises:
        SpecError: the file cannot be read, is not JSON, or is not a valid plan.
    """
    return parse_plan(read_json(file, SpecError))
