"""The functions that ``import factor_search`` gives to notebooks and scripts."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from factor_search.export.contract import Exported, Source
from factor_search.export.onnx import SETTINGS as ONNX_SETTINGS
from factor_search.export.reading import read_foreign
from factor_search.export.registry import export
from factor_search.export.verification.contract import Scorer
from factor_search.export.verification.registry import installed_for, scorer_named
from factor_search.export.verification.verify import (
    Verification,
    compare,
    reference,
    scored_length,
    scored_positions,
)
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, check_belongs, read_factors
from factor_search.job import run_job
from factor_search.measure.comparison import cost_in_words, first_tokens
from factor_search.measure.measurement import Result, measure
from factor_search.measure.request import GivenDocuments, JobDocuments, MeasurementRequest, Task
from factor_search.model.application import Application, geometry_of
from factor_search.report.document import build_factors_file, build_report, table
from factor_search.report.results import write_results
from factor_search.report.trackers.search import check_reports_nowhere, tracked_search
from factor_search.search.notebook import notebook_watcher as notebook_watcher
from factor_search.search.selection import JobResult, JobWatcher
from factor_search.spec import ModelSpec, parse_model, parse_spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = str | Mapping[str, Any]
"""A local folder or hub id, or the fields of a specification's ``model``."""

Documents = GivenDocuments | JobDocuments
"""Documents on which to measure."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    job: JobResult
    """Every evaluation, the finalists and the samples."""

    @property
    def factors(self) -> FactorsFile:
        """The best factors with their model, perplexities and provenance; of a partial result, the best so far."""
        return build_factors_file(self.job)

    @property
    def report(self) -> dict[str, Any]:
        """Everything measured, as in ``report.json``."""
        return build_report(self.job)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search: the result is partial."""
        return self.job.interrupted

    def table(self) -> str:
        """Perplexities of the found factors and of every closed form, for a terminal."""
        return table(self.report)

    def plot(self) -> "Figure":
        """The plots of the report in one figure of matplotlib, which ``savefig`` writes."""
        from factor_search.report.page import drawing

        return drawing(self.report)

    def _repr_html_(self) -> str:
        from factor_search.report.page import summary

        return summary(self.report)


def search_factors(
    model: Model,
    data: str | Sequence[str] | Mapping[str, Any],
    target_length: int,
    *,
    out: str | Path | None = None,
    watcher: JobWatcher | None = None,
    **fields: Any,
) -> SearchResult:
    """Search rescale factors for a longer context window, in this process (LongRoPE, 2402.13753).

    Args:
        model: folder or hub id of a causal language model, or the fields of a specification's ``model``.
        data: files or globs of documents, or the fields of a specification's ``data``.
        target_length: tokens of context wanted.
        out: folder for the results and all evaluations; the same search continues there after an interruption. None
            keeps nothing.
        watcher: receives the progress.
        fields: any other field of a job specification, such as ``strategy="cma"``, ``budget=100`` or
            ``trackers=["tensorboard"]``, which needs ``out``.

    Raises:
        FactorSearchError: the specification, the model or the documents do not allow the search; says why.
        KeyboardInterrupt: before the first candidate; later ones give a partial result.
    """
    files = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else data
    spec = parse_spec({"model": model, "data": files, "target_length": target_length, **fields})
    if out is not None:
        with tracked_search(spec, Path(out), watcher) as search:
            result = run_job(spec, Path(out), search.watcher)
            search.conclude(result, write_results(result, Path(out)))
        return SearchResult(result)
    check_reports_nowhere(spec)
    with tempfile.TemporaryDirectory() as folder:
        return SearchResult(run_job(spec, Path(folder) / "results", watcher))


def evaluate_factors(
    model: Model,
    data: str | Sequence[str],
    length: int,
    factors: FactorsFile | None = None,
    *,
    method: str | None = None,
    task: Task = "perplexity",
    documents: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    key_model: Model | None = None,
    chat: bool = False,
) -> Result:
    """Measure factors, a closed form, or the model as it is configured.

    Args:
        model: as for :func:`search_factors`.
        data: files or globs of documents.
        length: context in tokens.
        factors: of :func:`load_factors`; None is what ``method`` says.
        method: name of a closed form (``yarn``, ``ntk``, ...); None is the model as configured.
        task: ``perplexity`` of all tokens, of a ``needle``'s answer, or of ``key-tokens``; ``passkey`` accuracy; or
            ``ruler``, the share of facts found in its synthetic tasks.
        documents: use the first so many that are long enough; None is all.
        stride: slide a window of ``length`` tokens over whole documents by this many; None scores the first window.
        seed: of the hidden numbers of needles, passkeys and RULER.
        key_model: chooses the key tokens; a model that reads texts of the length, with the same tokenizer.
        chat: whether prompts of RULER are messages of a user in the tokenizer's chat template.

    Raises:
        FactorSearchError: the model, the documents or the factors do not fit together; says why.
    """
    files = [data] if isinstance(data, str) else list(data)
    given = GivenDocuments(files=files, length=length, documents=documents, stride=stride)
    asked = MeasurementRequest(
        model=_model_spec(model),
        documents=given,
        task=task,
        factors=factors,
        method=method,
        seed=seed,
        key_model=None if key_model is None else _model_spec(key_model),
        chat=chat,
    )
    return measure(asked)


def apply(model: PreTrainedModel, factors: FactorsFile | Factors) -> Application[PreTrainedModel]:
    """Let a loaded transformers model compute with factors, until ``restore()`` or the end of a ``with`` block.

    ::

        with fs.apply(model, factors):
            model.generate(...)

        applied = fs.apply(model, factors)
        model.generate(...)
        applied.restore()

    Initial tokens and the attention factor are in force as well. Without ``restore`` the factors stay in force as long
    as the model exists. Afterwards the model is as before: no module, buffer or hook differs.

    * Position ids decide which tokens are initial. A call with an attention mask and without position ids gets those
      that ``generate`` would give, so a left-padded batch is right.
    * One key-value cache must not be used both with and without the factors: it would mix keys rotated with different
      factors.
    * A compiled model is compiled again at its next call, and so is everything else that ``torch.compile`` made in this
      process.
    * ``save_pretrained`` writes the model's own configuration, without the factors: use :func:`export_factors`. A copy
      of the model made meanwhile keeps the factors.

    Args:
        model: a causal language model, on any device; compiled or not.
        factors: of :func:`load_factors`, or a candidate.

    Raises:
        FactorsError: the factors belong to another rotary geometry, or the model has factors applied already.
        UnsupportedModelError: the model has no rotary modules that factors can be put into.
    """
    if not isinstance(factors, FactorsFile):
        return Application(model, geometry_of(model), factors)
    geometry = geometry_of(model, factors.model.original_length)
    check_belongs(factors, geometry)
    return Application(model, geometry, factors.factors, factors.target_length)


apply_factors = apply
"""The name of :func:`apply` in earlier versions."""


def export_factors(
    factors: FactorsFile,
    out: str | Path,
    *,
    format: str = "huggingface",
    model: Model | None = None,
    short: FactorsFile | None = None,
    nearest: bool = False,
    measured_on: Documents | None = None,
    check: bool = True,
) -> Exported:
    """Write factors in the format of an inference engine.

    Args:
        factors: for long inputs.
        out: a new folder or file, as the format has it; a file ending in ``.json`` for the part that has the factors.
        format: a key of :data:`factor_search.export.registry.ENGINES`.
        model: the checkpoint; None is the one that the factors file names.
        short: readjusted factors for inputs up to the original length; None uses the same for all.
        nearest: write the nearest that the format can express, if it cannot express the factors themselves.
        measured_on: documents on which to measure what the nearest costs; None measures nothing. If a job's documents
            or its model are not here any more, the cost is not measured, and nothing fails.
        check: load what was written, where that is possible, and compare it with the model and the factors.

    Returns:
        The files written, a command that loads them, and what else the user should know.

    Raises:
        ExportError: the format cannot express the factors; says what is nearest, and what it costs if measured.
        FactorSearchError: the model does not fit, or something cannot be written.
    """
    spec = _model_of(factors, model)
    cost = None if measured_on is None else partial(_cost, measured_on)
    return export(format, Source(factors, spec, short, check), Path(out), nearest=nearest, cost=cost)


def verify_factors(
    factors: FactorsFile,
    engine: str,
    data: str | Sequence[str],
    *,
    model: Model | None = None,
    exported: str | Path | None = None,
    length: int | None = None,
) -> Verification:
    """Score a text longer than the original length with an installed engine, and compare with our own scores.

    Args:
        factors: the factors.
        engine: ``transformers``, ``llama.cpp``, ...; see :data:`factor_search.export.verification.registry.SCORERS`.
        data: files or globs; the first document that is long enough is scored.
        model: the model; None is the one that the factors file names.
        exported: what was exported for the engine; None exports into a temporary folder.
        length: tokens of the text; None is a quarter more than the original length, up to the target length.

    Raises:
        VerificationError: the engine is not installed, or cannot load or run the export.
        FactorSearchError: the model, the documents or the factors do not fit together; says why.
    """
    source = Source(factors, _model_of(factors, model))
    scorer = scorer_named(engine)
    if exported is not None:
        return _verified(source, [scorer], Path(exported), data, length)[0]
    with tempfile.TemporaryDirectory() as folder:
        written = export(scorer.format, source, Path(folder, "exported"))
        return _verified(source, [scorer], written.loaded, data, length)[0]


def verify_exported(
    exported: Exported, format: str, data: str | Sequence[str], *, length: int | None = None
) -> list[Verification]:
    """Let each installed engine that loads a format score text with what was exported.

    Args:
        exported: of :func:`export_factors`.
        format: its format.
        data, length: as for :func:`verify_factors`.

    Returns:
        One for each engine; empty if none is installed, and for formats that :func:`export_factors` checks itself.

    Raises:
        VerificationError: an engine cannot load or run the export; or computes something else, and what was exported
            is renamed to end in ``.different``.
        DataError: no document is long enough.
        ModelError: transformers cannot load the model.
        OutputError: there is no room for temporary files.
    """
    scorers = [scorer for scorer in installed_for(format) if format != "huggingface"]
    assert exported.source is not None
    verifications = _verified(exported.source, scorers, exported.loaded, data, length) if scorers else []
    for verification in verifications:
        verification.require_equal(exported.loaded, rename=True)
    return verifications


def _verified(
    source: Source, scorers: Sequence[Scorer], path: Path, data: str | Sequence[str], length: int | None
) -> list[Verification]:
    if (Path(source.model.id) / ONNX_SETTINGS).exists():  # transformers does not load it: the searched model is scored
        source = replace(source, model=_model_of(source.file, None))
    tokens = scored_length(source, length)
    ids = first_tokens(source.model, [data] if isinstance(data, str) else data, tokens)
    positions = scored_positions(tokens, source.file.model.original_length)
    expected = reference(source, ids, positions)
    return [compare(scorer.of(source.model), path, expected, ids, positions) for scorer in scorers]


def import_factors(
    source: str | Path | Mapping[str, Any] | Sequence[float],
    *,
    model: Model | None = None,
    target_length: int | None = None,
    trust_remote_code: bool = False,
) -> FactorsFile:
    """Read factors from another format.

    Args:
        source: a model folder, hub id or GGUF file, whose RoPE scaling is read (longrope, yarn, llama3, linear, ...); a
            config.json; a published table with ``rescale_factors``; a list of numbers as JSON, CSV or .npy. Or what
            such a file contains.
        model: the model to which the factors belong; None is the one that the source describes.
        target_length: tokens for which the factors are; None is what the source says. For longrope, one up to the
            original length chooses the short list.
        trust_remote_code: run Python code that comes with a source that is a model.

    Raises:
        FactorsError: the source has no factors, they do not fit the model, or something is missing; says what.
        ModelError: a model cannot be read.
    """
    origin = ModelSpec(id="-", trust_remote_code=trust_remote_code)
    spec = None if model is None else _model_spec(model)
    return read_foreign(source, model=spec, target_length=target_length, origin=origin)


def load_factors(file: str | Path) -> FactorsFile:
    """Read a factors file; its hash is checked.

    Raises:
        FactorsError: it cannot be read, or is not valid.
    """
    return read_factors(Path(file))


def save_factors(factors: FactorsFile, file: str | Path) -> None:
    """Write a factors file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    factors.write(Path(file))


def _cost(documents: Documents, source: Source, other: Source) -> str:
    """What it costs to use the factors of another source, in nats per token."""
    if other.short is not source.short:  # the two differ for short inputs only
        return "not measured: the difference is in inputs up to the original length"
    request = MeasurementRequest(model=source.model, documents=documents, factors=source.file)
    return cost_in_words(request, other.file)


def _model_of(factors: FactorsFile, model: Model | None) -> ModelSpec:
    return _model_spec({"id": factors.model.id, "revision": factors.model.revision} if model is None else model)


def _model_spec(model: Model) -> ModelSpec:
    return parse_model({"id": model} if isinstance(model, str) else dict(model))
