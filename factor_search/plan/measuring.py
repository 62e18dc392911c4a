"""A stage that evaluates: a ladder of lengths, passkeys by depth and length, and what short texts lose."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from factor_search.errors import DataError, OutputError
from factor_search.factors import Factors
from factor_search.factors_file import parse_factors
from factor_search.files.canonical_json import canonical_json
from factor_search.files.json_documents import read_json, write_json
from factor_search.job import read_samples
from factor_search.measure.evaluation import Evaluation, Evaluator
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ladder import ladder
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.passkey import Retrieval, accuracy_by_cell, even_depths, passkey_accuracy, passkey_samples
from factor_search.measure.passkey import as_json as passkey_document
from factor_search.measure.race import Race
from factor_search.measure.windows import doubling_lengths
from factor_search.methods import closed_form, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.model.loading import LoadedModel, load_model
from factor_search.plan.figures import Heard, compared, figures, share
from factor_search.plan.harness import run_harness
from factor_search.plan.readjusting import short_tokens
from factor_search.plan.work import EvaluateWork, Outcome
from factor_search.report.document import FOUND
from factor_search.spec import ModelSpec
from factor_search.text.needle import Needle
from factor_search.text.samples import Samples, SampleSet
from factor_search.text.tokens import CachedTokenizer

EVALUATIONS, PASSKEYS = "evaluations.jsonl", "passkeys.json"


def evaluate_ladder(work: EvaluateWork, evaluator: Evaluator, geometry: Geometry, samples: Samples) -> dict[str, Any]:
    """Perplexity by length of the factors and of every closed form, on held-out documents.

    Args:
        work: what to measure.
        evaluator: for ``work.job``: its model and length.
        geometry: of the model.
        samples: of ``work.job`` (see :func:`factor_search.job.read_samples`).

    Raises:
        SpecError: the lengths are below the model's original one.
    """
    factors = parse_factors(work.factors).factors
    return ladder(evaluator, geometry, {FOUND: factors}, samples.held_out, _lengths(work, geometry)).as_json()


def with_ladder(measured: Outcome, climbed: dict[str, Any]) -> Outcome:
    """The outcome of a whole evaluation: what was measured, and the ladder."""
    return measured.model_copy(update={"report": {"ladder": climbed, **measured.report}})


def measure(work: EvaluateWork, folder: Path, heard: Heard) -> Outcome:
    """All but the ladder; what was measured before an interruption is kept in the folder.

    Raises:
        FactorSearchError: models or documents cannot be read, documents are too short for passkeys, or a task of the
            harness fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heard({"phase": "loading"})
    loaded = load_model(work.model)
    samples = read_samples(work.job, loaded).held_out
    report: dict[str, Any] = {"held_out_documents": [one.source for one in samples.samples], "passkey": None}
    if work.passkey is not None:
        report["passkey"] = _passkeys(work, loaded, samples, folder, heard)
    heard({"phase": "measuring short texts"})
    report["short_window"] = _short_window(work, loaded, samples, folder)
    report["harness"] = run_harness(loaded, parse_factors(work.factors).factors, work.harness) if work.harness else None
    return Outcome(report=report)


def climb(work: EvaluateWork, folder: Path, heard: Heard) -> dict[str, Any]:
    """The ladder, in this process; evaluations are kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    heard({"phase": "loading"})
    loaded = load_model(work.model)
    samples = read_samples(work.job, loaded)
    forms = closed_forms(loaded.geometry, work.job.target_length)
    steps = len(_lengths(work, loaded.geometry)) * (len(forms) + 1)
    with Ledger(folder / EVALUATIONS) as ledger, LocalEvaluator(loaded, work.job.target_length) as local:
        told = _Told(RecordedEvaluator(local, ledger), steps, heard)
        return evaluate_ladder(work, told, loaded.geometry, samples)


class _Told:
    """An evaluator whose evaluations are heard of."""

    def __init__(self, evaluator: Evaluator, steps: int, heard: Heard) -> None:
        self._evaluator, self._steps, self._heard = evaluator, steps, heard
        self._done = 0

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return self._evaluator.key(factors, samples, documents)

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        for evaluation in self._evaluator.evaluate_all(candidates, samples, race):
            self._done += 1
            self._heard({"phase": "measuring the ladder of lengths", "step": self._done, "steps": self._steps})
            yield evaluation


def _passkeys(
    work: EvaluateWork, loaded: LoadedModel, documents: SampleSet, folder: Path, heard: Heard
) -> dict[str, Any] | None:
    """Accuracy by length and depth; retrievals of each length and depth are kept as soon as they are known.

    Of the ladder's lengths, those that a passkey and its question fit into; None if that is none.
    """
    asked, factors = work.passkey, parse_factors(work.factors).factors
    assert asked is not None
    chosen = SampleSet(documents.part, documents.samples[: asked.documents])
    place = partial(passkey_samples, tokenizer=CachedTokenizer(loaded.tokenizer), digits=asked.digits, seed=work.seed)
    lengths = asked.lengths
    if lengths is None:
        lengths = [length for length in _lengths(work, loaded.geometry) if _fits(partial(place, chosen), length)]
    if not lengths:
        return None
    needles = place(chosen, lengths=sorted(set(lengths)), depths=even_depths(asked.depths))
    identity = canonical_json([loaded.identity, work.sha256])
    kept = _kept(folder / PASSKEYS, identity)
    size = len(chosen.samples)
    for start in range(len(kept), len(needles), size):
        samples = [needle.sample for needle in needles[start : start + size]]
        kept += passkey_accuracy(loaded, factors, samples)
        write_json(folder / PASSKEYS, {"identity": identity, "retrievals": [vars(one) for one in kept]})
        heard({"phase": "passkeys", "step": len(kept) // size, "steps": len(needles) // size})
    return passkey_document(accuracy_by_cell(needles, kept)) | {"overall": _overall(kept, size)}


def _overall(retrievals: Sequence[Retrieval], documents: int) -> dict[str, Any]:
    """The share of all passkeys that was found; samples of one document are not independent, so it counts as one."""
    shares = [fmean(one.right for one in retrievals[number::documents]) for number in range(documents)]
    error = stdev(shares) / math.sqrt(documents) if documents > 1 else None
    return {"accuracy": fmean(shares), "standard_error": error, "documents": documents}


def _lengths(work: EvaluateWork, geometry: Geometry) -> list[int]:
    """Of the ladder; the last is the target, which the closed forms are for."""
    if work.lengths is None:
        return doubling_lengths(geometry.original_length, work.job.target_length)
    return sorted({*work.lengths, work.job.target_length})


def _fits(place: Callable[..., list[Needle]], length: int) -> bool:
    try:
        place(lengths=[length], depths=[0.5])
    except DataError:
        return False
    return True


def _kept(file: Path, identity: str) -> list[Retrieval]:
    if not file.exists():
        return []
    document = read_json(file, OutputError)
    return [Retrieval(**one) for one in document["retrievals"]] if document["identity"] == identity else []


def _short_window(work: EvaluateWork, loaded: LoadedModel, documents: SampleSet, folder: Path) -> dict[str, Any]:
    """Losses within the original length, in windows as readjusting has them.

    Of the plan's model as it is, and of this one with long and readjusted factors.
    """
    length = loaded.geometry.original_length
    most = short_tokens(length, work.job.target_length)
    cut = documents.cut(most)
    losses = {"original": _losses_of(work.original, cut, length, folder)}
    candidates = {"long": work.factors} | ({"short": work.short} if work.short else {})
    for name, document in candidates.items():
        losses[name] = _losses(loaded, parse_factors(document).factors, cut, length, folder)
    windows = most // length
    tokens = [windows * (length - 1)] * len(cut.samples)
    rows = [
        {"name": name, **(figures(one, tokens) or {"perplexity": None}), **compared(one, losses["original"], tokens)}
        for name, one in losses.items()
    ]
    return {"length": length, "windows": windows, "rows": rows, "recovered": _recovered(losses)}


def _losses_of(spec: ModelSpec, samples: SampleSet, length: int, folder: Path) -> tuple[float, ...]:
    """Of a model with the RoPE that it has."""
    loaded = load_model(spec)
    geometry = loaded.geometry
    factors = geometry.configured_factors(length) or closed_form("none", geometry, length)
    return _losses(loaded, factors, samples, length, folder)


def _losses(loaded: LoadedModel, factors: Factors, samples: SampleSet, length: int, folder: Path) -> tuple[float, ...]:
    """Of each document, in windows one after the other; none if it could not be evaluated."""
    with Ledger(folder / EVALUATIONS) as ledger, LocalEvaluator(loaded, length, stride=length) as local:
        return next(RecordedEvaluator(local, ledger).evaluate_all([factors], samples)).losses


def _recovered(losses: dict[str, tuple[float, ...]]) -> dict[str, Any] | None:
    """How much of what the long factors cost short texts is won back by the readjusted ones."""
    if not all(losses.values()) or "short" not in losses:
        return None
    long, short, original = (losses[name] for name in ("long", "short", "original"))
    won = [a - b for a, b in zip(long, short, strict=True)]
    cost = [a - b for a, b in zip(long, original, strict=True)]
    return share(won, cost)
