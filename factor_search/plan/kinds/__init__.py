"""The kinds of stages that a plan is made of, one file each; a new kind is a file and a line here."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from factor_search.plan.kinds import await_checkpoint, evaluate, export, finetune, readjust, search
from factor_search.plan.kinds.contract import Stage, StageKind, Work

KINDS: dict[str, StageKind[Any, Any]] = {
    kind.name: kind
    for kind in (search.KIND, readjust.KIND, finetune.KIND, await_checkpoint.KIND, evaluate.KIND, export.KIND)
}
"""By the word in a specification."""
ROLES: dict[str, tuple[str, ...]] = {
    role: tuple(name for name, kind in KINDS.items() if role in kind.stage.provides)
    for role in ("model", "factors", "start_from", "short")
}
"""The fields of a stage that name earlier stages, and of which kinds these must be."""

if TYPE_CHECKING:
    StageSpec = Stage
    WorkSpec = Work
else:
    StageSpec = Annotated[reduce(or_, (kind.stage for kind in KINDS.values())), Field(discriminator="kind")]
    """Any stage, as specifications and their JSON schemas have it."""
    WorkSpec = Annotated[reduce(or_, (kind.work for kind in KINDS.values())), Field(discriminator="kind")]
    """Any work, as it is stored."""


def kind_of(one: Stage | Work) -> StageKind[Any, Any]:
    """The kind of a stage or of its work."""
    return KINDS[one.kind]
