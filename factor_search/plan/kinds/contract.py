"""What every kind of stage is made of: its specification, its work, what it may touch, and how it is done and reported.

    Stage      what a user asks for
      └ Work   the same with everything that earlier stages produced; its identity decides what is reused
          └ Outcome   the checkpoint, the factors, the figures

A kind of stage is one file of this package: subclasses of :class:`Stage` and :class:`Work`, and a :class:`StageKind`
that knows all the rest. This module and the kinds load neither torch nor transformers when they are imported, since
records and interfaces read specifications; what performs a stage imports them when it is called.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, Field

from factor_search.factors_file import FactorsFile, parse_factors
from factor_search.files.canonical_json import sha256_of
from factor_search.measure.evaluation import Evaluator
from factor_search.model.geometry import Geometry
from factor_search.spec import DataSpec, JobSpec, ModelSpec, Strict, Trackers
from factor_search.spec.named import Names, Text, named_in
from factor_search.text.samples import Samples

if TYPE_CHECKING:
    from factor_search.plan.costs import PlanCosts

ORIGINAL = "original"
"""Names the plan's own model where a stage would use another by default."""
MODEL = "The stage whose checkpoint is used, or 'original' for the plan's model; null is the last checkpoint before."
FACTORS = "The search whose factors are used; null is the last one before, on this model if there is one."

FactorsDocument = Annotated[dict[str, Any], Names.NOTHING]
"""The JSON of a factors file."""
OnProgress = Callable[[dict[str, Any]], None]
"""Receives the progress of a stage: a ``phase``, or a ``step`` with its figures; may raise to end the stage."""


class Execution(StrEnum):
    """How a service carries out a stage."""

    SEARCH = "search"
    """As a search job: candidates are spread over all workers."""
    WORKER = "worker"
    """As one long-running task on one worker, after candidates on all workers if the kind evaluates any."""
    CHECKPOINT = "checkpoint"
    """The plan waits until a user supplies a checkpoint, which one worker then checks."""


class Stage(Strict):
    """The part of a specification that all kinds of stages share."""

    provides: ClassVar[frozenset[str]] = frozenset()
    """The fields of later stages that may name this one: model, factors, start_from or short."""
    needs_search: ClassVar[str | None] = None
    """What is impossible without a search before it, for an error message; None for a search itself."""

    name: Text | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=60,
        description="By which later stages refer to it; null is the kind and its number, as in search-1.",
    )
    kind: Any
    model: Text | None = Field(None, description=MODEL)

    @property
    def lengths_read(self) -> Sequence[int]:
        """Lengths in tokens that every document it reads must have."""
        return ()


class Outcome(Strict):
    """What a stage has produced."""

    model: ModelSpec | None = Field(None, description="The checkpoint that it made or was given.")
    factors: FactorsDocument | None = Field(None, description="The factors file of a search.")
    report: dict[str, Any] = Field(default={}, description="What was measured, by kind of stage.")
    taken: dict[str, Any] | None = Field(
        None,
        exclude_if=lambda taken: taken is None,  # earlier versions had none
        description="Seconds, tokens and peak memory of what one worker did alone, in its last run.",
    )


@dataclass(frozen=True, kw_only=True)
class Access:
    """The models and files of a job, a plan or a stage, which identities cover."""

    models: tuple[ModelSpec, ...]
    """The model that is worked on, then others that are compared with."""
    data: DataSpec | None = None
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Paths and globs of further files, by the key of the specification that holds them."""
    writes: bool = False
    """Whether checkpoints or other large files are written, for which a service needs a folder."""

    @classmethod
    def of(cls, specification: BaseModel, *, writes: bool) -> "Access":
        """What the descriptions of the fields say; see :mod:`factor_search.spec.named`.

        Raises:
            SpecError: a field is not described.
        """
        named = list(named_in(specification))
        models = [one.holder for one in named if one.kind is Names.MODEL]
        return cls(
            models=tuple(model for model in models if isinstance(model, ModelSpec)),
            data=next((one.holder for one in named if isinstance(one.holder, DataSpec)), None),
            files={
                one.key: one.value
                for one in named
                if one.kind in (Names.DOCUMENTS, Names.FILES) and not isinstance(one.holder, DataSpec)
            },
            writes=writes,
        )


class Work(Strict, ABC):
    """What one stage has to do, with everything in it."""

    writes: ClassVar[bool] = True
    """Whether it writes checkpoints or other large files."""

    stage: Text = Field(description="The stage's name; it does not affect the result.")
    kind: Any
    trackers: Trackers = Field([])

    @property
    def sha256(self) -> str:
        """Identity of all that determines the result; names, budgets and how often to save are left out."""
        return sha256_of(self._identity())

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What is hashed."""

    def access(self) -> Access:
        """Which models and files it reads; the first model is the one that is worked on."""
        return Access.of(self, writes=self.writes)

    @property
    def budget(self) -> dict[str, Any] | None:
        """The budget, with which the result of a search changes but not its identity; None of other kinds."""
        return None

    def as_job(self, plan: str) -> tuple[str, dict[str, Any]]:
        """Name and specification of the job that does it in a service.

        Args:
            plan: name of the plan.
        """
        return f"{plan}/{self.stage}", self.model_dump(mode="json")

    def evaluated_as(self) -> JobSpec | None:
        """The job whose model, documents and window its candidates are evaluated with; None if it evaluates none."""
        return None


@dataclass(frozen=True, kw_only=True)
class PlanContext:
    """A plan and the outcomes of its stages so far: what makes work of a stage."""

    name: str
    model: ModelSpec
    data: DataSpec
    """With ``least_tokens``, so that every stage splits the documents alike."""
    training_files: list[str] | None
    seed: int
    outcomes: Mapping[str, Outcome]

    def model_of(self, stage: Stage) -> ModelSpec:
        """The model that a complete stage works on."""
        made = None if stage.model in (None, ORIGINAL) else self.outcomes[str(stage.model)].model
        return self.model if made is None else made

    def factors_of(self, name: str | None) -> FactorsDocument:
        """The factors that a search has found."""
        found = self.outcomes[str(name)].factors
        assert found is not None, "a search that has ended has factors"
        return found


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """The local model of a plan, against which its stages are checked before anything is loaded."""

    spec: ModelSpec
    geometry: Geometry
    lengths: Mapping[str, int]
    """Target length in tokens of each search."""


StageT = TypeVar("StageT", bound=Stage)
WorkT = TypeVar("WorkT", bound=Work)


class StageKind(ABC, Generic[StageT, WorkT]):
    """Everything that specification, policy, execution and reports need to know of one kind of stage."""

    stage: type[StageT]
    work: type[WorkT]
    execution: Execution

    @property
    def name(self) -> str:
        """The word in a specification."""
        word: str = self.stage.model_fields["kind"].default
        return word

    def complete(self, stage: StageT, before: Mapping[str, Stage]) -> StageT:
        """The stage with every reference filled in that has a meaning.

        Args:
            stage: with its model, and its factors unless it is a search.
            before: the complete stages before it, by name.

        Raises:
            ValueError: there is nothing to refer to, or it does not fit.
        """
        return stage

    def check(self, stage: StageT, before: Mapping[str, Stage]) -> None:
        """Refuse a complete stage that does not fit those before it.

        Raises:
            ValueError: saying which and why.
        """

    def check_original_length(self, stage: StageT, original_length: int) -> None:
        """Refuse a stage that does not fit the original length that a plan states.

        Raises:
            ValueError: saying why.
        """

    def check_packages(self, stage: StageT) -> None:
        """Refuse a stage that needs a package that is not installed.

        Raises:
            FactorSearchError: naming the package.
        """

    def check_model(self, stage: StageT, model: LocalModel) -> None:
        """Refuse a stage that does not fit the plan's local model.

        Raises:
            FactorSearchError: saying why.
        """

    @abstractmethod
    def make_work(self, stage: StageT, context: PlanContext) -> WorkT:
        """What a complete stage has to do; reads no file.

        Raises:
            FactorsError: the factors that it uses are not valid.
        """

    def estimate(self, stage: StageT, costs: "PlanCosts") -> dict[str, Any]:
        """What a complete stage will cost, as JSON: ``total``, ``memory``, ``fits``, ``speed``, ``notes`` and more.

        By default the model is loaded, and read once at its original length.

        Args:
            stage: the stage.
            costs: what is known of its plan.
        """
        return costs.passes({costs.geometry.original_length: 1.0})

    def evaluate(self, work: WorkT, evaluator: Evaluator, geometry: Geometry, samples: Samples) -> dict[str, Any]:
        """The part of the report that evaluates candidates, on however many workers.

        Args:
            work: one with a job (see :meth:`Work.evaluated_as`).
            evaluator: for that job.
            geometry: of its model.
            samples: of that job.
        """
        raise NotImplementedError(f"{self.name} evaluates no candidates")

    def candidates(self, work: WorkT, geometry: Geometry) -> int:
        """How many evaluations :meth:`evaluate` asks for."""
        return 0

    def perform(self, work: WorkT, folder: Path, on_progress: OnProgress) -> Outcome:
        """Do the part that one worker does alone.

        Run again after an interruption it continues from what the folder holds, and ends as if undisturbed; on a CPU
        bit for bit.

        Args:
            work: what to do.
            folder: for this work alone; created if needed.
            on_progress: receives the progress; what it raises passes through.

        Raises:
            FactorSearchError: the work cannot be done, saying why.
        """
        raise NotImplementedError(f"{self.name} is not performed by one worker")

    @abstractmethod
    def figures(self, work: WorkT, outcome: Outcome) -> dict[str, Any]:
        """What the plan's report keeps of an outcome."""

    @abstractmethod
    def summary(self, figures: dict[str, Any]) -> str:
        """One sentence on what the stage gained."""

    def section(self, entry: dict[str, Any]) -> str:
        """HTML of the stage's section in the page of the plan, from its entry in the report; empty for none."""
        return ""


def content_of(document: FactorsDocument) -> dict[str, Any]:
    """The part of a factors file that acts: neither what was measured of it, nor where it comes from."""
    file: FactorsFile = parse_factors(document)
    model = file.model.model_dump(include={"rope_theta", "rotary_dim", "original_length"})
    return {**file.factors.as_json(), "target_length": file.target_length, "model": model}


def made_model(base: ModelSpec, folder: Path, original_length: int) -> ModelSpec:
    """How to load a checkpoint that was made from another: in the same way, with the same original length."""
    where = {"id": str(folder.resolve()), "revision": None}
    return base.model_copy(update=where | {"original_length": original_length})


def plus_minus(value: float | None, error: float | None, digits: int = 4) -> str:
    """A figure with its standard error; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def better(difference: float | None, error: float | None) -> str:
    """A paired difference of losses in words; above 0 is better."""
    if difference is None:
        return "not comparable"
    size = plus_minus(abs(difference), error)
    return f"{size} nats per token {'better' if difference >= 0 else 'worse'}"
