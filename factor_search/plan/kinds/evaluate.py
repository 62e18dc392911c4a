"""A stage that measures on the held-out documents: by length, in short texts, and whether the model reads far."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from factor_search.errors import DataError, SpecError
from factor_search.factors_file import parse_factors
from factor_search.measure.evaluation import Evaluator
from factor_search.measure.ladder import ladder
from factor_search.measure.windows import doubling_lengths
from factor_search.methods import USUAL, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.plan.far_reading import (
    KeyTokensSpec,
    OnStep,
    PasskeySpec,
    RulerSpec,
    key_token_perplexity,
    key_tokens,
    passkeys,
    ruler,
)
from factor_search.plan.kinds.contract import (
    FACTORS,
    MODEL,
    Execution,
    FactorsDocument,
    LocalModel,
    OnProgress,
    Outcome,
    PlanContext,
    Stage,
    StageKind,
    Work,
    better,
    content_of,
    plus_minus,
)
from factor_search.plan.kinds.readjust import readjustment_for, short_tokens
from factor_search.plan.kinds.search import search_named
from factor_search.plan.task_names import LONGEST, PATTERN, check_task_names
from factor_search.report.document import FOUND
from factor_search.spec import DataSpec, Int, JobSpec, ModelSpec, PositiveInt, Tokens
from factor_search.spec.named import Names, Text
from factor_search.text.samples import Samples, SampleSet

if TYPE_CHECKING:
    from factor_search.model.loading import LoadedModel
    from factor_search.plan.costs import PlanCosts

EVALUATIONS, PASSKEYS, RULER = "evaluations.jsonl", "passkeys.json", "ruler.json"
"""What is kept in the folder of the work."""
AMPLE = 8192
"""Tokens into which every task of RULER fits."""


def _task(name: str) -> str:
    try:
        check_task_names([name])
    except SpecError as error:
        raise ValueError(str(error)) from None
    return name


TaskName = Annotated[str, Field(pattern=PATTERN, max_length=LONGEST), AfterValidator(_task)]


class EvaluateStage(Stage):
    """Measure on the held-out documents: perplexity by length, passkeys, and short-context degradation."""

    needs_search: ClassVar[str | None] = "nothing to evaluate"

    kind: Literal["evaluate"] = "evaluate"
    model: Text | None = Field(None, description=MODEL)
    factors: Text | None = Field(None, description=FACTORS)
    short: Text | None = Field(None, description="The readjustment of these factors; null is the last one, if any.")
    lengths: list[Annotated[Tokens, Field(ge=2)]] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="In tokens, beside the target; null is the original length, twice that, ...",
    )
    passkey: PasskeySpec | None = Field(PasskeySpec(), description="Null leaves it out.")
    ruler: RulerSpec | None = Field(None, description="Synthetic tasks of RULER; null leaves them out.")
    key_tokens: KeyTokensSpec | None = Field(None, description="Perplexity of key tokens; null leaves it out.")
    harness: Annotated[list[TaskName], Names.TASKS] = Field(
        default=[],
        max_length=64,
        description="Registered tasks of lm-evaluation-harness, which must be installed; not files.",
    )

    @property
    def lengths_read(self) -> Sequence[int]:
        """Those of the ladder."""
        return self.lengths or ()


class EvaluateWork(Work):
    """Measurements on the held-out documents."""

    kind: Literal["evaluate"] = "evaluate"
    model: ModelSpec
    original: ModelSpec = Field(description="The plan's model, whose short-context perplexity is compared with.")
    data: DataSpec
    factors: FactorsDocument
    short: FactorsDocument | None = Field(description="The readjusted factors, if there are any.")
    lengths: list[PositiveInt] | None
    passkey: PasskeySpec | None
    ruler: RulerSpec | None = None
    key_tokens: KeyTokensSpec | None = None
    harness: Annotated[list[str], Names.TASKS]
    seed: Int

    @property
    def job(self) -> JobSpec:
        """The model, documents and length as those of a job."""
        target_length = parse_factors(self.factors).target_length
        return JobSpec(name=self.stage, model=self.model, data=self.data, target_length=target_length, seed=self.seed)

    def evaluated_as(self) -> JobSpec:
        """See :attr:`job`."""
        return self.job

    def ladder_lengths(self, geometry: Geometry) -> list[int]:
        """Lengths in tokens, ascending; the last is the target, which the closed forms are for."""
        if self.lengths is None:
            return doubling_lengths(geometry.original_length, self.job.target_length)
        return sorted({*self.lengths, self.job.target_length})

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"stage", "trackers"})
        for later in ("ruler", "key_tokens"):  # fields that earlier versions had not
            if content[later] is None:
                del content[later]
        return content | {"factors": content_of(self.factors), "short": self.short and content_of(self.short)}


class EvaluateKind(StageKind[EvaluateStage, EvaluateWork]):
    """See :class:`EvaluateStage`."""

    stage = EvaluateStage
    work = EvaluateWork
    execution = Execution.WORKER

    def complete(self, stage: EvaluateStage, before: Mapping[str, Stage]) -> EvaluateStage:
        """With the readjustment of its factors, if there is one."""
        short = readjustment_for(stage, str(stage.model), str(stage.factors), before)
        return stage.model_copy(update={"short": short})

    def check(self, stage: EvaluateStage, before: Mapping[str, Stage]) -> None:
        """No length may be beyond the target of the factors."""
        target = search_named(stage.factors, before).target_length
        asked = [*(stage.lengths or ()), *((stage.passkey and stage.passkey.lengths) or ())]
        asked += (stage.ruler and stage.ruler.lengths) or ()
        if asked and max(asked) > target:
            raise ValueError(
                f"{stage.name}: a length of {max(asked)} tokens is beyond the {target} that {stage.factors} is for"
            )

    def check_packages(self, stage: EvaluateStage) -> None:
        """Tasks of the harness need the harness."""
        if stage.harness:
            from factor_search.plan.harness import check_installed

            check_installed()

    def check_model(self, stage: EvaluateStage, model: LocalModel) -> None:
        """A passkey, and each task of RULER, must fit into the least length that is asked for."""
        from factor_search.measure import passkey_grid
        from factor_search.model.loading import load_tokenizer
        from factor_search.text import ruler as tasks
        from factor_search.text.tokens import CachedTokenizer

        part = "passkey.lengths"
        try:
            if stage.passkey is not None and stage.passkey.lengths is not None:
                least, digits = min(stage.passkey.lengths), stage.passkey.digits
                passkey_grid.check_room(load_tokenizer(model.spec), least, digits)
            part = "ruler"
            if (asked := stage.ruler) is not None and (asked.lengths is not None or asked.chat):
                least = min(asked.lengths or [AMPLE])  # the ladder's lengths are tried when it is performed
                tokenizer = CachedTokenizer(load_tokenizer(model.spec))
                tasks.check_room(tokenizer, least, asked.tasks, chat=asked.chat)
        except DataError as error:
            raise DataError(f"{stage.name}: {part}: {error}") from None

    def make_work(self, stage: EvaluateStage, context: PlanContext) -> EvaluateWork:
        """The factors, and the model before it was extended."""
        return EvaluateWork(
            stage=str(stage.name),
            original=context.model,
            model=context.model_of(stage),
            data=context.data,
            factors=context.factors_of(stage.factors),
            short=context.factors_of(stage.short) if stage.short else None,
            lengths=stage.lengths,
            passkey=stage.passkey,
            ruler=stage.ruler,
            key_tokens=stage.key_tokens,
            harness=stage.harness,
            seed=context.seed,
        )

    def estimate(self, stage: EvaluateStage, costs: "PlanCosts") -> dict[str, Any]:
        """The ladder, passkeys at every length and depth, and the windows that short contexts are measured on."""
        target, original = costs.lengths[str(stage.factors)], costs.geometry.original_length
        lengths = doubling_lengths(original, target) if stage.lengths is None else sorted({*stage.lengths, target})
        held_out = costs.data.held_out_documents
        counts: Counter[int] = Counter()
        for length in lengths:
            counts[length] += held_out * (costs.forms(target) + 1)
        if stage.passkey is not None:
            for length in stage.passkey.lengths or lengths:
                counts[length] += stage.passkey.depths * min(stage.passkey.documents or held_out, held_out)
        if stage.ruler is not None:
            one_fact = sum(task in stage.ruler.tasks for task in ("single", "multi-key"))
            asked = one_fact * stage.ruler.depths + len(stage.ruler.tasks) - one_fact
            for length in stage.ruler.lengths or lengths:
                counts[length] += asked * min(stage.ruler.documents or held_out, held_out)
        if stage.key_tokens is not None:
            counts[target] += 3 * held_out  # and as much to choose them, by a model that is taken to be as large
        models = 2 + (stage.short is not None)
        counts[original] += held_out * models * (short_tokens(original, target) // original)
        return costs.passes(dict(counts), loads=3)

    def evaluate(
        self, work: EvaluateWork, evaluator: Evaluator, geometry: Geometry, samples: Samples
    ) -> dict[str, Any]:
        """The ladder: perplexity by length of the factors, and of the closed forms that they were compared with.

        Raises:
            SpecError: the lengths are below the model's original one.
        """
        file, lengths = parse_factors(work.factors), work.ladder_lengths(geometry)
        also = file.perplexity.held_out_baselines
        return {"ladder": ladder(evaluator, geometry, {FOUND: file.factors}, samples.held_out, lengths, also).as_json()}

    def candidates(self, work: EvaluateWork, geometry: Geometry) -> int:
        """The factors and the closed forms, at each length."""
        compared = {*USUAL, *parse_factors(work.factors).perplexity.held_out_baselines}
        forms = compared.intersection(closed_forms(geometry, work.job.target_length))
        return len(work.ladder_lengths(geometry)) * (len(forms) + 1)

    def perform(self, work: EvaluateWork, folder: Path, on_progress: OnProgress) -> Outcome:
        """Passkeys, short-context degradation and tasks of the harness.

        Raises:
            FactorSearchError: models or documents cannot be read, documents are too short for passkeys, or a task of
                the harness fails.
        """
        from factor_search.job import read_samples
        from factor_search.measure.short_context import short_context
        from factor_search.model.loading import load_model
        from factor_search.plan.harness import run_harness

        folder.mkdir(parents=True, exist_ok=True)
        on_progress({"phase": "loading"})
        loaded = load_model(work.model)
        held_out = read_samples(work.job, loaded).held_out
        report: dict[str, Any] = {"held_out_documents": [one.source for one in held_out.samples], "passkey": None}
        report |= _far(work, loaded, held_out, folder, on_progress)
        on_progress({"phase": "measuring short texts"})
        documents = held_out.cut(short_tokens(loaded.geometry.original_length, work.job.target_length))
        factors = {"long": work.factors} | ({"short": work.short} if work.short else {})
        candidates = {name: parse_factors(document).factors for name, document in factors.items()}
        report["short_window"] = short_context(work.original, loaded, candidates, documents, folder / EVALUATIONS)
        report["harness"] = run_harness(loaded, candidates["long"], work.harness) if work.harness else None
        return Outcome(report=report)

    def figures(self, work: EvaluateWork, outcome: Outcome) -> dict[str, Any]:
        """All of them."""
        return dict(outcome.report)

    def summary(self, figures: dict[str, Any]) -> str:
        """The perplexity at the target, short-context degradation, and the passkeys found."""
        parts = []
        ladder = figures["ladder"]
        longest = [rung for rung in ladder["rungs"] if rung["length"] == ladder["lengths"][-1]]
        found = next(rung for rung in longest if rung["name"] == FOUND)
        if found["perplexity"] is not None:
            at = f"perplexity {plus_minus(found['perplexity'], found['standard_error'])} at {found['length']:,} tokens"
            if found["difference"] is not None:
                best = ladder["best_closed_forms"][str(found["length"])]
                at += f", {better(-found['difference'], found['difference_standard_error'])} than {best}"
            parts.append(at)
        short = figures["short_window"]
        long = next(row for row in short["rows"] if row["name"] == "long")
        if long["difference"] is not None:
            cost = plus_minus(long["difference"], long["difference_standard_error"])
            parts.append(f"short-context degradation of the long factors: {cost} nats per token")
        if short["recovered"] is not None:
            recovered = plus_minus(short["recovered"]["share"], short["recovered"]["standard_error"], 2)
            parts.append(f"readjusting recovers {recovered} of that")
        overall = (figures["passkey"] or {}).get("overall")  # outcomes of the first plans have none
        if overall:
            parts.append(f"{plus_minus(overall['accuracy'], overall['standard_error'], 2)} of passkeys found")
        if figures.get("ruler"):
            over = [score for score in figures["ruler"]["scores"] if score["depth"] is None]
            found = sum(score["accuracy"] for score in over) / len(over)
            count = len(figures["ruler"]["tasks"])
            parts.append(f"{found:.2f} of the facts of {count} task{'s' * (count != 1)} of RULER")
        if figures.get("key_tokens"):
            first, *others = figures["key_tokens"]["rows"]
            if first["perplexity"] is not None:
                at = f"perplexity {plus_minus(first['perplexity'], first['standard_error'])} of key tokens"
                parts.append(", ".join([at, *(f"{one['name']} {one['perplexity'] or math.inf:.4g}" for one in others)]))
        return "; ".join(parts)

    def section(self, entry: dict[str, Any]) -> str:
        """See :func:`factor_search.plan.evaluation_section.evaluation_section`."""
        from factor_search.plan.evaluation_section import evaluation_section

        return evaluation_section(entry)


def _far(
    work: EvaluateWork, loaded: "LoadedModel", held_out: SampleSet, folder: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Whether the model reads far, by what is asked for."""
    file, ladder_ = parse_factors(work.factors), work.ladder_lengths(loaded.geometry)
    report: dict[str, Any] = {}

    def step(phase: str) -> OnStep:
        return lambda done, total: on_progress({"phase": phase, "step": done, "steps": total})

    common = (ladder_, loaded, file.factors, held_out)
    if work.passkey is not None:
        record, on_step = folder / PASSKEYS, step("passkeys")
        report["passkey"] = passkeys(
            work.passkey, *common, seed=work.seed, record=record, identity=work.sha256, on_step=on_step
        )
    if work.ruler is not None:
        record, on_step = folder / RULER, step("tasks of RULER")
        report["ruler"] = ruler(
            work.ruler, *common, seed=work.seed, record=record, identity=work.sha256, on_step=on_step
        )
    if work.key_tokens is not None:
        on_progress({"phase": "choosing key tokens"})
        documents = key_tokens(work.key_tokens, loaded.tokenizer, held_out)
        on_progress({"phase": "measuring key tokens"})
        baselines = file.perplexity.held_out_baselines
        forms = closed_forms(loaded.geometry, file.target_length)
        known = [name for name in baselines if name in forms]
        best = min(known, key=lambda name: baselines[name], default="none")
        candidates = {FOUND: file.factors, best: forms[best]}
        record = folder / EVALUATIONS
        report["key_tokens"] = key_token_perplexity(loaded, candidates, documents, file.target_length, record)
    return report


KIND = EvaluateKind()
