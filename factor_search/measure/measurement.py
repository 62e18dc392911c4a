"""One set of factors measured on documents: perplexity of all or some tokens, passkey retrieval, or RULER's tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from factor_search.errors import SearchFailedError
from factor_search.factors import Factors
from factor_search.factors_file import check_belongs
from factor_search.files.html import html_table, html_values
from factor_search.measure import passkey
from factor_search.measure.evaluation import DIVERGED, OK
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.key_tokens import check_same_tokens, with_key_tokens
from factor_search.measure.request import GivenDocuments, JobDocuments, MeasurementRequest
from factor_search.measure.ruler import RulerResult, answers, scores
from factor_search.measure.statistics import Summary
from factor_search.methods import closed_form, untouched
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.injection import probe
from factor_search.model.loading import LoadedModel, load_config, load_model, load_tokenizer
from factor_search.model.losses import why_not_finite
from factor_search.spec import MEASURES, NeedleSpec
from factor_search.text.documents import documents_from_files
from factor_search.text.needle import needle_samples
from factor_search.text.ruler import questions
from factor_search.text.samples import SampleSet, check_vocabulary, distinct_tokens, first_samples, load_samples
from factor_search.text.tokens import CachedTokenizer

Scored: TypeAlias = Literal["perplexity", "needle", "key-tokens"]
NAMES = {**MEASURES, "key-tokens": "perplexity of key tokens"}
FIGURES: dict[Scored, str] = {"needle": "answer_perplexity", "key-tokens": "key_token_perplexity"}
"""What JSON calls a perplexity that is not of all tokens."""


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexity over documents, of all tokens, of the answers about hidden numbers, or of key tokens."""

    task: Scored
    factors: Factors
    summary: Summary
    """Its standard error is NaN for a single document."""

    @property
    def standard_error(self) -> float | None:
        """Of the perplexity over documents; None for a single one."""
        return None if self.summary.documents == 1 else self.summary.standard_error

    def as_json(self) -> dict[str, Any]:
        """The figures, counts and factors as JSON."""
        figures: dict[str, Any] = {"perplexity": self.summary.perplexity, "standard_error": self.standard_error}
        if self.task in FIGURES:
            figures = {"task": self.task, FIGURES[self.task]: figures.pop("perplexity"), **figures}
        counts = {"tokens": self.summary.tokens, "documents": self.summary.documents}
        return {**figures, **counts, "factors": self.factors.as_json()}

    def table(self) -> str:
        """One line for a terminal."""
        plus_minus = "" if self.standard_error is None else f" ± {self.standard_error:.4f} (standard error)"
        return (
            f"{NAMES[self.task]} {self.summary.perplexity:.6f}{plus_minus}, {self.summary.documents} documents, "
            f"{self.summary.tokens:,} tokens"
        )

    def _repr_html_(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f} (standard error)"
        values = {
            NAMES[self.task]: f"{self.summary.perplexity:.6f}{error}",
            "loss": f"{self.summary.loss:.6f} nats per token",
            "documents": f"{self.summary.documents:,}",
            "tokens": f"{self.summary.tokens:,}",
        }
        return html_values("Evaluation", values)


@dataclass(frozen=True, kw_only=True)
class PasskeyResult:
    """How often the model retrieves a passkey, by length and depth."""

    factors: Factors
    cells: Sequence[passkey.Cell]

    def as_json(self) -> dict[str, Any]:
        """Lengths, depths, the cells and the factors as JSON."""
        return {"task": "passkey", **passkey.as_json(self.cells), "factors": self.factors.as_json()}

    def table(self) -> str:
        """A line for each length, a column for each depth."""
        return passkey.table(self.cells)

    def _repr_html_(self) -> str:
        depths = dict.fromkeys(cell.depth for cell in self.cells)
        accuracy = {(cell.length, cell.depth): cell.accuracy for cell in self.cells}
        rows = [
            [f"{length:,}", *(f"{accuracy[length, depth]:.0%}" for depth in depths)]
            for length in dict.fromkeys(cell.length for cell in self.cells)
        ]
        titles = ["tokens", *(f"depth {depth:.0%}" for depth in depths)]
        return f"<div><strong>Passkeys retrieved</strong>{html_table(titles, rows)}</div>"


OnStart: TypeAlias = Callable[[Sequence[int]], None]


Result: TypeAlias = PerplexityResult | PasskeyResult | RulerResult


def measure(request: MeasurementRequest, on_start: OnStart = lambda lengths: None) -> Result:
    """Load the model, read the documents and measure.

    Args:
        request: what to measure.
        on_start: called with the tokens of each sample once everything is loaded, before the first is evaluated.

    Raises:
        ModelError: the model cannot be loaded, or factors cannot act on it.
        DataError: documents cannot be read, or too few of them are long enough.
        FactorsError: the factors belong to another model, or there is no such closed form.
        SearchFailedError: a loss is not finite, or memory does not suffice.
    """
    # the other model is not in memory any more when this one is loaded
    chosen = _key_tokens(request) if request.task == "key-tokens" else None
    loaded = load_model(request.model)
    tokenizer = CachedTokenizer(loaded.tokenizer)
    documents = chosen or samples_of(request, tokenizer, loaded.geometry.original_length)
    check_vocabulary(documents, loaded.model.get_input_embeddings().num_embeddings)
    factors = factors_of(request, loaded.geometry)
    if request.task == "passkey":
        return _passkeys(request, loaded, documents, factors, on_start)
    if request.task == "ruler":
        return _ruler(request, loaded, documents, factors, on_start)
    return _perplexity(request, request.task, loaded, documents, factors, on_start)


def _key_tokens(request: MeasurementRequest) -> SampleSet:
    """The documents with the key tokens that another model chooses."""
    assert request.key_model is not None
    geometry = read_geometry(load_config(request.model), request.model.original_length)
    tokenizer = CachedTokenizer(load_tokenizer(request.model))
    documents = samples_of(request, tokenizer, geometry.original_length)
    chooser = load_model(request.key_model)
    check_vocabulary(documents, chooser.model.get_input_embeddings().num_embeddings)
    check_same_tokens(documents, tokenizer, CachedTokenizer(chooser.tokenizer))
    return with_key_tokens(documents, chooser, request.key_context)


def _ruler(
    request: MeasurementRequest, loaded: LoadedModel, documents: SampleSet, factors: Factors, on_start: OnStart
) -> RulerResult:
    tokenizer = CachedTokenizer(loaded.tokenizer)
    asked = questions(
        documents.samples,
        tokenizer,
        tasks=request.ruler,
        lengths=request.lengths or [request.length],
        depths=passkey.even_depths(request.depths),
        seed=_seed(request),
        chat=request.chat,
    )
    probe(loaded.model, loaded.geometry)
    on_start([one.length for one in asked])
    return RulerResult(factors=factors, scores=scores(asked, answers(loaded, factors, asked, tokenizer.text)))


def _perplexity(
    request: MeasurementRequest,
    task: Scored,
    loaded: LoadedModel,
    samples: SampleSet,
    factors: Factors,
    on_start: OnStart,
) -> PerplexityResult:
    if task == "needle":
        options = _needle(request).model_dump(exclude={"kind"})
        tokenizer = CachedTokenizer(loaded.tokenizer)
        samples = needle_samples(samples, tokenizer, length=request.length, seed=_seed(request), **options)
    probe(loaded.model, loaded.geometry)
    on_start([len(sample.tokens) for sample in samples.samples])
    with LocalEvaluator(loaded, request.length, _stride(request)) as evaluator:
        evaluation = evaluator.evaluate(factors, samples)
    if evaluation.outcome != OK:
        reason = f": {why_not_finite(loaded.model.dtype)}" if evaluation.outcome == DIVERGED else ""
        raise SearchFailedError(f"the evaluation ended as {evaluation.outcome.replace('_', ' ')}{reason}")
    return PerplexityResult(task=task, factors=factors, summary=evaluation.summary)


def _passkeys(
    request: MeasurementRequest, loaded: LoadedModel, documents: SampleSet, factors: Factors, on_start: OnStart
) -> PasskeyResult:
    needles = passkey.passkey_samples(
        documents,
        CachedTokenizer(loaded.tokenizer),
        lengths=request.lengths or [request.length],
        depths=passkey.even_depths(request.depths),
        digits=request.digits or passkey.DIGITS,
        seed=_seed(request),
    )
    probe(loaded.model, loaded.geometry)
    samples = [needle.sample for needle in needles]
    on_start([len(sample.tokens) for sample in samples])
    cells = passkey.accuracy_by_cell(needles, passkey.passkey_accuracy(loaded, factors, samples))
    return PasskeyResult(factors=factors, cells=cells)


def samples_of(request: MeasurementRequest, tokenizer: CachedTokenizer, original_length: int) -> SampleSet:
    """The documents as tokens, without hidden numbers.

    Args:
        request: whose documents.
        tokenizer: of the model.
        original_length: of the model, in tokens.

    Raises:
        DataError: documents cannot be read, or too few of them are long enough.
    """
    source, stride = request.documents, _stride(request)
    if isinstance(source, GivenDocuments):
        documents = documents_from_files(list(source.files), source.column, source.split)
        return first_samples(documents, tokenizer, source.length, source.documents, whole=stride is not None)
    spec = source.spec
    samples = load_samples(
        spec.data,
        tokenizer,
        spec.target_length,
        seed=spec.seed,
        whole=stride is not None,
        distinct=distinct_tokens(spec.data, original_length),
    )
    if stride is not None and spec.tokens_scored is not None:
        samples = samples.cut(spec.tokens_scored)
    chosen: SampleSet = getattr(samples, source.part)
    return chosen


def factors_of(request: MeasurementRequest, geometry: Geometry) -> Factors:
    """The factors to measure.

    Raises:
        FactorsError: they belong to another model, or there is no such closed form.
    """
    if request.factors is not None:
        check_belongs(request.factors, geometry)
        return request.factors.factors
    if request.method is not None:
        return closed_form(request.method, geometry, request.length)
    return untouched(geometry, request.length)


def _stride(request: MeasurementRequest) -> int | None:
    if request.task != "perplexity":
        return None
    return request.documents.spec.stride if isinstance(request.documents, JobDocuments) else request.documents.stride


def _seed(request: MeasurementRequest) -> int:
    return request.documents.spec.seed if isinstance(request.documents, JobDocuments) else request.seed


def _needle(request: MeasurementRequest) -> NeedleSpec:
    if isinstance(request.documents, JobDocuments) and isinstance(request.documents.spec.objective, NeedleSpec):
        return request.documents.spec.objective
    return NeedleSpec() if request.digits is None else NeedleSpec(digits=request.digits)
