"""What can be asked of a measurement of one set of factors; without torch, so that it is quick to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from factor_search.errors import SpecError
from factor_search.factors_file import FactorsFile
from factor_search.spec import JobSpec, ModelSpec

Task: TypeAlias = Literal["perplexity", "needle", "passkey"]
TASKS: tuple[Task, ...] = ("perplexity", "needle", "passkey")
Part: TypeAlias = Literal["search", "validation", "held_out"]
PARTS: tuple[Part, ...] = ("search", "validation", "held_out")
DEPTHS = 5


@dataclass(frozen=True, kw_only=True)
class GivenDocuments:
    """Documents named directly."""

    files: Sequence[str]
    """Files, globs or saved data sets."""
    length: int
    """Context in tokens: how much of each document is read, or the window where it slides."""
    documents: int | None = None
    """Use the first so many that are long enough; None is all."""
    stride: int | None = None
    """Slide the window over whole documents by so many tokens; None scores the first window only."""
    column: str = "text"
    """Column or JSON key that holds a document's text."""
    split: str = "validation"
    """Split of a saved data set."""

    def __post_init__(self) -> None:
        _check_range("length", self.length, 2)
        _check_range("documents", self.documents, 1)
        _check_range("stride", self.stride, 1)
        if self.stride is not None and self.stride > self.length:
            raise SpecError(f"stride is {self.stride}, beyond the length of {self.length} tokens")


@dataclass(frozen=True, kw_only=True)
class JobDocuments:
    """The very documents of a search job, with its length, stride and seed."""

    spec: JobSpec
    part: Part = "held_out"


@dataclass(frozen=True, kw_only=True)
class MeasurementRequest:
    """What to measure; each message of its errors begins with the name of the field."""

    model: ModelSpec
    documents: GivenDocuments | JobDocuments
    task: Task = "perplexity"
    factors: FactorsFile | None = None
    """None is what ``method`` says."""
    method: str | None = None
    """A closed form for the length; None is the model as configured."""
    lengths: Sequence[int] = ()
    """Passkeys only: context lengths in tokens, all with the same factors; empty is the length of the documents."""
    depths: int = DEPTHS
    """Passkeys only: how many depths, evenly from the beginning to the end."""
    digits: int | None = None
    """Of the hidden numbers; None is 7 for needles (or what the job says) and 5 for passkeys."""
    seed: int = 0
    """Of the hidden numbers; documents of a job bring their own."""

    def __post_init__(self) -> None:
        _check_range("depths", self.depths, 1, 1000)
        _check_range("digits", self.digits, 2, 15)
        _check_range("seed", self.seed, 0, 2**53 - 1)
        if isinstance(self.documents, JobDocuments):
            target = self.documents.spec.target_length
            if max(self.lengths, default=0) > target:
                raise SpecError(f"lengths goes up to {max(self.lengths)}, beyond the target length of {target} tokens")

    @property
    def length(self) -> int:
        """Tokens of context that the factors are for."""
        return self.documents.spec.target_length if isinstance(self.documents, JobDocuments) else self.documents.length


def _check_range(name: str, value: int | None, least: int, most: int | None = None) -> None:
    if value is None or (value >= least and (most is None or value <= most)):
        return
    allowed = f"at least {least}" if most is None else f"between {least} and {most}"
    raise SpecError(f"{name} is {value}: it must be {allowed}")
