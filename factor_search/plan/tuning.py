"""A stage that fine-tunes: documents, training, and what it gained on held-out documents."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from factor_search.factors import Factors
from factor_search.factors_file import parse_factors
from factor_search.finetune.run import finetune
from factor_search.job import distinct_tokens
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.windows import doubling_lengths
from factor_search.model.geometry import Geometry
from factor_search.model.loading import LoadedModel, load_model
from factor_search.plan.figures import Heard, compared, figures
from factor_search.plan.training_documents import training_documents
from factor_search.plan.work import FinetuneWork, Outcome
from factor_search.spec import ModelSpec
from factor_search.text.samples import SampleSet, load_samples
from factor_search.text.tokens import CachedTokenizer

EVALUATIONS = "evaluations.jsonl"


def tune(work: FinetuneWork, folder: Path, heard: Heard) -> Outcome:
    """Fine-tune, and measure held-out documents with the factors in force before and after.

    Raises:
        FactorSearchError: see :func:`factor_search.finetune.run.finetune`.
    """
    file = parse_factors(work.factors)
    factors, target = file.factors, file.target_length
    loaded = load_model(work.model)
    geometry, tokenizer = loaded.geometry, CachedTokenizer(loaded.tokenizer)
    heard({"phase": "reading documents"})
    distinct = distinct_tokens(work.data, geometry)
    held_out = load_samples(work.data, tokenizer, target, seed=work.seed, distinct=distinct).held_out
    documents = training_documents(work, tokenizer, geometry, target)
    folder.mkdir(parents=True, exist_ok=True)
    heard({"phase": "measuring held-out documents before"})
    before = _measured(loaded, factors, held_out, target, folder)
    heard({"phase": "fine-tuning"})
    steps = {"steps": work.settings.steps}
    result = finetune(
        loaded, documents, factors, target, work.settings, folder, lambda step: heard(asdict(step) | steps)
    )
    del loaded
    tuned = made_model(work.model, result.model, geometry)
    heard({"phase": "measuring held-out documents after"})
    after = _measured(load_model(tuned), factors, held_out, target, folder)
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


def made_model(base: ModelSpec, folder: Path, geometry: Geometry) -> ModelSpec:
    """How to load a checkpoint that was made from another: likewise, and trained for the same original length."""
    where = {"id": str(folder.resolve()), "revision": None}
    return base.model_copy(update=where | {"original_length": geometry.original_length})


def _measured(loaded: LoadedModel, factors: Factors, samples: SampleSet, length: int, folder: Path) -> Evaluation:
    with Ledger(folder / EVALUATIONS) as ledger, LocalEvaluator(loaded, length) as local:
        return next(RecordedEvaluator(local, ledger).evaluate_all([factors], samples))


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
