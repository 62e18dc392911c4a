"""A stage that fine-tunes the model with factors in force, and measures what that gained."""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from factor_search.errors import FinetuneError
from factor_search.factors_file import parse_factors
from factor_search.finetune.spec import FinetuneSpec
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.figures import compared, figures
from factor_search.measure.windows import doubling_lengths
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
    made_model,
    plus_minus,
)
from factor_search.plan.kinds.export import check_configuration, check_no_initial_tokens
from factor_search.plan.kinds.search import search_named
from factor_search.spec import DataSpec, Int, ModelSpec
from factor_search.spec.named import Names, Text

if TYPE_CHECKING:
    from factor_search.plan.costs import PlanCosts

EVALUATIONS = "evaluations.jsonl"


class FinetuneStage(Stage):
    """Train the model with factors in force; the result is a checkpoint that plain transformers loads."""

    provides: ClassVar[frozenset[str]] = frozenset({"model"})
    needs_search: ClassVar[str | None] = "nothing to fine-tune with"

    kind: Literal["finetune"] = "finetune"
    model: Text | None = Field(None, description=MODEL)
    factors: Text | None = Field(None, description=FACTORS)
    settings: FinetuneSpec = FinetuneSpec()


class FinetuneWork(Work):
    """A fine-tuning with factors in force, for the length that they are for."""

    kind: Literal["finetune"] = "finetune"
    model: ModelSpec
    data: DataSpec
    training_files: Annotated[list[str] | None, Names.DOCUMENTS]
    factors: FactorsDocument
    settings: FinetuneSpec
    seed: Int

    def _identity(self) -> dict[str, Any]:
        settings = self.settings.sha256
        content = self.model_dump(mode="json", include={"kind", "model", "data", "training_files", "seed"})
        return content | {"factors": content_of(self.factors), "settings": settings}


class FinetuneKind(StageKind[FinetuneStage, FinetuneWork]):
    """See :class:`FinetuneStage`."""

    stage = FinetuneStage
    work = FinetuneWork
    execution = Execution.WORKER

    def check(self, stage: FinetuneStage, before: Mapping[str, Stage]) -> None:
        """The training length must be within the target, and a configuration must be able to hold the factors."""
        target, settings = search_named(stage.factors, before).target_length, stage.settings
        if settings.train_length is not None and settings.train_length > target:
            raise ValueError(
                f"{stage.name}: train_length is {settings.train_length} tokens, beyond the {target} that "
                f"{stage.factors} is for"
            )
        if not settings.drop_initial_tokens:
            check_no_initial_tokens(stage, stage.factors, before, ", or drop_initial_tokens to true")

    def check_packages(self, stage: FinetuneStage) -> None:
        """LoRA needs peft."""
        if stage.settings.method.kind == "lora" and importlib.util.find_spec("peft") is None:
            raise FinetuneError(f"{stage.name}: method 'lora' needs the package peft: pip install peft")

    def check_model(self, stage: FinetuneStage, model: LocalModel) -> None:
        """The lengths must fit, and the configuration must be able to hold factors."""
        stage.settings.sequence_length(model.geometry.original_length, model.lengths[str(stage.factors)])
        check_configuration(stage.factors, model)

    def make_work(self, stage: FinetuneStage, context: PlanContext) -> FinetuneWork:
        """The factors of the search, and where documents are."""
        return FinetuneWork(
            stage=str(stage.name),
            model=context.model_of(stage),
            data=context.data,
            training_files=context.training_files,
            factors=context.factors_of(stage.factors),
            settings=stage.settings,
            seed=context.seed,
        )

    def estimate(self, stage: FinetuneStage, costs: "PlanCosts") -> dict[str, Any]:
        """The training, and the held-out documents before and after it."""
        target = costs.lengths[str(stage.factors)]
        measured = costs.passes({target: 2.0 * costs.data.held_out_documents}, loads=2)
        training = costs.training(stage.settings, target)
        fit = ("memory", "fits", "largest_length", "too_large")
        whole = {key: training.pop(key) for key in (*fit, "notes")}
        if whole["fits"] is not False and measured["fits"] is False:
            whole = {key: measured[key] for key in fit} | {"notes": whole["notes"]}
        total = {key: _sum(measured["total"][key], training[key]) for key in ("tokens", "seconds")}
        notes = list(dict.fromkeys([*measured["notes"], *whole.pop("notes")]))
        return {**measured, **whole, "training": training, "total": total, "notes": notes}

    def perform(self, work: FinetuneWork, folder: Path, on_progress: OnProgress) -> Outcome:
        """Fine-tune, and measure held-out documents with the factors in force before and after."""
        from factor_search.finetune.run import finetune
        from factor_search.model.loading import load_model
        from factor_search.plan.training_documents import training_documents
        from factor_search.text.samples import distinct_tokens, load_samples
        from factor_search.text.tokens import CachedTokenizer

        file = parse_factors(work.factors)
        factors, target = file.factors, file.target_length
        loaded = load_model(work.model)
        geometry, tokenizer = loaded.geometry, CachedTokenizer(loaded.tokenizer)
        on_progress({"phase": "reading documents"})
        distinct = distinct_tokens(work.data, geometry.original_length)
        held_out = load_samples(work.data, tokenizer, target, seed=work.seed, distinct=distinct).held_out
        documents = training_documents(
            work.data, work.training_files, tokenizer, geometry, target, work.settings, seed=work.seed
        )
        folder.mkdir(parents=True, exist_ok=True)

        def measured(model: Any) -> Evaluation:
            from factor_search.measure.evaluator import LocalEvaluator
            from factor_search.measure.ledger import Ledger, RecordedEvaluator

            with Ledger(folder / EVALUATIONS) as ledger, LocalEvaluator(model, target) as local:
                return next(RecordedEvaluator(local, ledger).evaluate_all([factors], held_out))

        on_progress({"phase": "measuring held-out documents before"})
        before = measured(loaded)
        on_progress({"phase": "fine-tuning"})
        steps = {"steps": work.settings.steps}
        result = finetune(
            loaded, documents, factors, target, work.settings, folder, lambda step: on_progress(asdict(step) | steps)
        )
        del loaded
        tuned = made_model(work.model, result.model, geometry.original_length)
        on_progress({"phase": "measuring held-out documents after"})
        after = measured(load_model(tuned))
        report = {
            "target_length": target,
            "losses": [list(pair) for pair in result.losses],
            "tokens": result.tokens,
            "seconds": result.seconds,
            "documents": result.documents,
            "held_out_documents": [sample.source for sample in held_out.samples],
            "gain": [_gain(before, after, length) for length in doubling_lengths(geometry.original_length, target)],
        }
        return Outcome(model=tuned, report=report)

    def figures(self, work: FinetuneWork, outcome: Outcome) -> dict[str, Any]:
        """All of them."""
        return dict(outcome.report)

    def summary(self, figures: dict[str, Any]) -> str:
        """Perplexity before and after, at the target length."""
        last = figures["gain"][-1]
        before, after = last["before"], last["after"]
        text = f"{len(figures['losses']):,} steps"
        if before is None or after is None:
            return f"{text}; held-out documents could not be measured"
        return (
            f"{text}: perplexity {plus_minus(before['perplexity'], before['standard_error'])} to "
            f"{plus_minus(after['perplexity'], after['standard_error'])} at {last['length']:,} tokens; "
            f"{better(last['difference'], last['difference_standard_error'])} than before"
        )

    def section(self, entry: dict[str, Any]) -> str:
        """The loss curve, and perplexity by length before and after."""
        from factor_search.plan.plots import draw_losses
        from factor_search.report.document import number
        from factor_search.report.page import figure, html_table

        shown = [(when, key) for when in ("before", "after") for key in ("perplexity", "standard_error")]
        rows = [
            [
                f"{row['length']:,} tokens",
                *(number(row[when] and row[when][key]) for when, key in shown),
                number(row["difference"]),
                number(row["difference_standard_error"]),
            ]
            for row in entry["gain"]
        ]
        caption = (
            f"Loss of each of {len(entry['losses']):,} steps, {entry['tokens']:,} tokens in all, and its running mean."
        )
        titles = ["first", "before", "±", "after", "±", "gained (nats)", "±"]
        return figure(draw_losses, entry, caption) + html_table(titles, rows)


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def _gain(before: Evaluation, after: Evaluation, length: int) -> dict[str, Any]:
    """Perplexity of the first ``length`` tokens before and after, and the paired difference of the losses."""
    tokens = [length - 1] * len(before.losses)
    losses = [one.losses_at.get(length, ()) for one in (before, after)]
    return {
        "length": length,
        "before": figures(losses[0], tokens),
        "after": figures(losses[1], tokens),
        **compared(losses[0], losses[1], tokens),
    }


KIND = FinetuneKind()
