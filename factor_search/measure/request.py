"""What can be asked of a measurement of one set of factors; without torch, so that it is quick to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from factor_search.errors import SpecError
from factor_search.factors_file import FactorsFile
from factor_search.spec import RULER_TASKS, JobSpec, ModelSpec, RulerTask

Task: TypeAlias = Literal["perplexity", "needle", "passkey", "key-tokens", "ruler"]
TASKS: tuple[Task, ...] = get_args(Task)
Part: TypeAlias = Literal["search", "validation", "held_out"]
PARTS: tuple[Part, ...] = ("search", "validation", "held_out")
Measured: TypeAlias = Literal["search", "validation", "held_out", "held_out_text", "short_window", "divergence"]
"""What a job measures candidates on: its three parts, the plain text of held-out documents where the others score
needles, and the first tokens of documents, up to the original length, of the search and of the held-out ones."""
MEASURED = get_args(Measured)
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
    """Passkeys and RULER: lengths in tokens, all with the same factors; empty is the length of the documents."""
    depths: int = DEPTHS
    """Passkeys and RULER: how many depths, evenly from the beginning to the end."""
    digits: int | None = None
    """Of the hidden numbers; None is 7 for needles (or what the job says) and 5 for passkeys."""
    seed: int = 0
    """Of the hidden numbers and words; documents of a job bring their own."""
    ruler: Sequence[RulerTask] = RULER_TASKS
    """RULER only: which of its tasks."""
    chat: bool = False
    """RULER only: prompts are messages of a user in the tokenizer's chat template."""
    key_model: ModelSpec | None = None
    """Key tokens only: the model that chooses them, which reads texts of the length and has the same tokenizer."""
    key_context: int | None = None
    """Key tokens only: tokens of the short context that they are not predicted from; None is 4,096, or half of the
    length if that is fewer."""

    def __post_init__(self) -> None:
        _check_range("depths", self.depths, 1, 1000)
        _check_range("digits", self.digits, 2, 15)
        _check_range("key_context", self.key_context, 2)
        if self.task == "key-tokens" and self.key_model is None:
            raise SpecError("key_model is missing: name a model that reads texts of this length, to choose the tokens")
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
