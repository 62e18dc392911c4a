"""Compares factors on the same documents, and reads the tokens of a document as a measurement does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from factor_search.errors import DataError, ModelError, SearchFailedError, one_line
from factor_search.factors_file import FactorsFile
from factor_search.files.html import html_values
from factor_search.measure.evaluation import OK
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.measurement import factors_of, samples_of
from factor_search.measure.request import JobDocuments, MeasurementRequest
from factor_search.measure.statistics import paired_difference
from factor_search.model.loading import load_model, load_tokenizer
from factor_search.spec import ModelSpec
from factor_search.text.documents import documents_from_files
from factor_search.text.samples import first_samples
from factor_search.text.tokens import CachedTokenizer


@dataclass(frozen=True)
class Difference:
    """How much more the loss is with other factors, paired over documents."""

    nats: float
    """Mean difference in nats per token; above 0 if the other factors are worse."""
    standard_error: float
    """Over documents; NaN for a single one."""
    documents: int

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.4f}"
        plural = "" if self.documents == 1 else "s"
        return f"{self.nats:+.4f}{error} nats per token on {self.documents} document{plural}"

    def _repr_html_(self) -> str:
        return html_values("Difference", {"paired over documents": str(self)})


def loss_difference(request: MeasurementRequest, other: FactorsFile) -> Difference:
    """Measure two sets of factors on the same documents; the model is loaded once.

    Args:
        request: model, documents and the first factors; perplexity of all tokens.
        other: the second factors.

    Raises:
        ModelError, DataError, FactorsError, SearchFailedError: see :func:`factor_search.measure.measurement.measure`.
    """
    loaded = load_model(request.model)
    samples = samples_of(request, CachedTokenizer(loaded.tokenizer), loaded.geometry.original_length)
    both = [factors_of(item, loaded.geometry) for item in (request, replace(request, factors=other, method=None))]
    with LocalEvaluator(loaded, request.length) as evaluator:
        first, second = [evaluator.evaluate(factors, samples) for factors in both]
    for evaluation in (first, second):
        if evaluation.outcome != OK:
            raise SearchFailedError(f"the evaluation ended as {evaluation.outcome.replace('_', ' ')}")
    return Difference(*paired_difference(second.losses, first.losses, first.tokens), documents=len(first.losses))


def cost_in_words(request: MeasurementRequest, other: FactorsFile) -> str:
    """Say what other factors cost; or why that was not measured, if documents of a job are not here any more.

    Raises:
        ModelError, DataError, FactorsError, SearchFailedError: see :func:`loss_difference`; the first two only for
            documents that were named directly.
    """
    try:
        return str(loss_difference(request, other))
    except (DataError, ModelError) as error:
        if isinstance(request.documents, JobDocuments):
            return f"not measured: {one_line(error)}"
        raise


def first_tokens(model: ModelSpec, files: Sequence[str], length: int) -> list[int]:
    """Return the first ``length`` token ids of the first document that is long enough.

    Raises:
        DataError: there is none, or documents cannot be read.
        ModelLoadError: the model has no tokenizer.
    """
    tokenizer = CachedTokenizer(load_tokenizer(model))
    documents = documents_from_files(list(files), "text", "validation")
    sample = first_samples(documents, tokenizer, length, 1).samples[0]
    return [int(token) for token in sample.tokens[:length]]
