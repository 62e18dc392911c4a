"""A search job in this process: the model is loaded, documents are read, evaluations are kept in a folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from factor_search.errors import DataError, FactorSearchError, OutputError
from factor_search.files.atomic import cannot_write, write_atomically
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.model.checkpoint_files import is_local
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import check_finite, probe
from factor_search.model.loading import LoadedModel, check_weights, load_config, load_model, load_tokenizer
from factor_search.model.memory import PeakMemory, available_bytes
from factor_search.model.size import ModelSize, model_size, size_of
from factor_search.model.speed import (
    Speed,
    assumed_speed,
    calibrated,
    calibrated_alike,
    described,
    device_of,
)
from factor_search.search.estimate import Known, estimate_search
from factor_search.search.problem import FORMS, SearchProblem
from factor_search.search.selection import JobResult, JobWatcher, measured_with, search_and_measure
from factor_search.search.warm_start import embedded
from factor_search.spec import JobSpec, ModelSpec, NeedleSpec
from factor_search.text.documents import document_files
from factor_search.text.needle import needle_samples
from factor_search.text.samples import Samples, SampleSet, Watch, check_vocabulary, distinct_tokens, load_samples
from factor_search.text.tokens import CachedTokenizer

IDENTITY = ".factor-search"
"""File in the output folder that says which search its results are of."""


def run_job(spec: JobSpec, out: Path, watcher: JobWatcher | None = None) -> JobResult:
    """Run a search and measure its result; evaluations are kept in ``out``, and the same search continues from them.

    A keyboard interrupt after the first candidate gives a partial result.

    Args:
        spec: what to search.
        out: folder of this search alone; created if needed.
        watcher: receives the progress.

    Raises:
        FactorSearchError: the search cannot be run, saying why; evaluations that were written are kept.
        KeyboardInterrupt: before the first candidate.
    """
    watcher, began = watcher or JobWatcher(), time.perf_counter()
    spec = embedded(spec)
    problem = SearchProblem.of(spec, read_geometry(load_config(spec.model), spec.model.original_length))
    folder = _open_folder(out, spec)
    with folder.ledger as ledger:
        problem = SearchProblem.of(spec, problem.geometry, folder.forms)
        continued = len(ledger) > 0
        watcher.phase(f"loading {spec.model.id}")
        peak = PeakMemory(device_of(spec.model))
        loaded = load_model(spec.model)
        probe(loaded.model, loaded.geometry)
        if loaded.geometry != problem.geometry:  # what the live model computes with counts
            problem = SearchProblem.of(spec, loaded.geometry, folder.forms)
        watcher.phase("reading documents")
        samples = read_samples(spec, loaded, watcher.documents)
        measuring = time.perf_counter()
        estimate = _estimate_of_loaded(problem, loaded, samples, measuring - began)
        began += time.perf_counter() - measuring  # measuring the speed is no part of the job
        if estimate is not None:
            watcher.estimate(estimate)
        with LocalEvaluator(loaded, spec.target_length, spec.stride) as local:
            evaluator = RecordedEvaluator(local, ledger)
            result = search_and_measure(problem, samples, evaluator, watcher)
            result.identity = measured_with(result, evaluator, loaded.identity | loaded.environment)
    result.estimate, result.continued = estimate, continued
    result.seconds, result.peak_memory = time.perf_counter() - began, peak.bytes()
    return result


def check_possible(spec: JobSpec) -> tuple[str, ...]:
    """Refuse a job that cannot succeed, as far as that shows without loading the model or reading a document.

    Returns:
        What was assumed of a local model, one sentence each.

    Raises:
        DataError: a path or glob matches nothing.
        ModelError: a local model is not there or a file of it is damaged; its configuration has no rotary position
            embeddings, or none that sees beyond the original length; or transformers cannot load it.
        FactorsError: the factors of a warm start cannot be read, or belong to another model.
        SpecError: the target length, or the space, does not fit a local model.
    """
    spec = embedded(spec)
    for pattern in [*(spec.data.files or ()), *(spec.data.held_out_files or ())]:
        document_files(pattern)
    if not is_local(spec.model.id):
        return ()
    config = load_config(spec.model)
    geometry = read_geometry(config, spec.model.original_length)
    SearchProblem.of(spec, geometry)
    check_weights(spec.model, config)
    return geometry.notes


FindSpeed = Callable[[ModelSpec, PretrainedConfig, ModelSize, int], Speed | None]
"""Returns how fast a model of some configuration and size evaluates windows of so many tokens; None if unknown."""


def estimate_job(
    spec: JobSpec,
    speed: FindSpeed = calibrated_alike,
    *,
    available: int | None = None,
    workers: int = 1,
    read: bool = True,
) -> dict[str, Any]:
    """Estimate tokens, time and memory of a job; no weights are read.

    What cannot be known is null, with the reason in ``notes``.

    Args:
        spec: the job.
        speed: finds the speed; by default it is measured here.
        available: bytes of memory that a worker can use; None if that is not known.
        workers: how many evaluate at the same time.
        read: whether documents are read.

    Returns:
        A JSON document; see :func:`factor_search.search.estimate.estimate_search`.

    Raises:
        ModelError: the model's configuration cannot be read, or nothing can be searched for it.
        FactorSearchError: the specification does not fit the model.
    """
    spec = embedded(spec)
    config = load_config(spec.model)
    geometry = read_geometry(config, spec.model.original_length)
    problem, samples, notes = SearchProblem.of(spec, geometry), None, [*geometry.notes]
    if read:
        try:
            samples = read_documents(spec)
        except DataError as error:
            notes.append(f"the documents cannot be used: {error}")
    else:
        notes.append("the documents were not read: each is taken to be long enough")
    known = known_of(spec.model, config, spec.target_length, speed, available=available, workers=workers)
    return estimate_search(
        spec,
        replace(known, notes=(*notes, *known.notes)),
        problem.forms_compared,
        samples,
        original_length=geometry.original_length,
    )


def known_of(
    model: ModelSpec,
    config: PretrainedConfig,
    tokens: int,
    speed: FindSpeed,
    *,
    available: int | None = None,
    workers: int = 1,
) -> Known:
    """Find out what an estimate needs to know of a model.

    Args:
        model: the model.
        config: its configuration.
        tokens: of the windows that will be evaluated.
        speed: finds the speed.
        available: bytes of memory that a worker can use.
        workers: how many evaluate at the same time.
    """
    notes: list[str] = []
    try:
        size = model_size(model, config)
    except FactorSearchError as error:
        return Known(size=None, speed=None, available=available, workers=workers, notes=(f"no estimate: {error}",))
    found = speed(model, config, size, tokens)
    if found is None:
        found = assumed_speed(described(device_of(model)), torch.get_num_threads())
    if not found.calibrated:
        notes.append(ROUGH[found.source])
    return Known(size=size, speed=found, available=available, workers=workers, notes=tuple(notes))


ROUGH = {
    "assumed": "the time is rough: nobody has measured how fast this model is evaluated there",
    "earlier": "the time is rough: it is that of an earlier job, whose lengths or precision may differ",
}
"""What is said of a speed that was not measured, by its source."""


def _estimate_of_loaded(
    problem: SearchProblem, loaded: LoadedModel, samples: Samples, elapsed: float
) -> dict[str, Any] | None:
    """The estimate with the model in memory, which took so many seconds; None where its size is not known."""
    known = measured_model(loaded, problem.spec.target_length)
    if known is None:
        return None
    device = loaded.model.device
    known = replace(known, available=available_bytes(str(device)))
    length = problem.geometry.original_length
    return estimate_search(problem.spec, known, problem.forms_compared, samples, elapsed, original_length=length)


def measured_model(loaded: LoadedModel, tokens: int) -> Known | None:
    """Size and speed of a loaded model; None where a pass of the calibration fails, as the first evaluation will.

    Args:
        loaded: the model.
        tokens: of the windows that will be evaluated.
    """
    try:
        size = size_of(loaded.model, loaded.spec, loaded.geometry.config)
        return Known(size=size, speed=calibrated(loaded.model, size, tokens))
    except (RuntimeError, MemoryError, AttributeError, ValueError, TypeError):
        return None


def read_documents(spec: JobSpec) -> Samples:
    """The samples of a job, without its weights in memory.

    Raises:
        ModelError: the configuration or the tokenizer cannot be loaded.
        DataError: documents cannot be read, too few of them are long enough, or the target is too short for a needle
            and its question.
    """
    geometry = read_geometry(load_config(spec.model), spec.model.original_length)
    return _tokenised(spec, CachedTokenizer(load_tokenizer(spec.model)), geometry.original_length)


def read_samples(spec: JobSpec, loaded: LoadedModel, watch: Watch | None = None) -> Samples:
    """The samples of a job, as tokens of the loaded model.

    Raises:
        DataError: documents cannot be read, too few of them are long enough, the target is too short for a needle and
            its question, or the tokenizer belongs to another model.
        UnsupportedModelError: the model as it is gives losses that are not finite on the first of them.
    """
    samples = _tokenised(spec, CachedTokenizer(loaded.tokenizer), loaded.geometry.original_length, watch)
    check_samples(samples, loaded)
    return samples


def check_samples(samples: Samples, loaded: LoadedModel) -> None:
    """Check that a model can predict the samples.

    Raises:
        DataError: the tokenizer belongs to another model.
        UnsupportedModelError: the model as it is gives losses that are not finite on the first of them.
    """
    for part in (samples.search, samples.validation, samples.held_out):
        check_vocabulary(part, loaded.model.get_input_embeddings().num_embeddings)
    check_finite(loaded.model, loaded.geometry, samples.search.samples[0].tokens)


def _tokenised(spec: JobSpec, tokenizer: CachedTokenizer, original_length: int, watch: Watch | None = None) -> Samples:
    whole = spec.stride is not None
    distinct = distinct_tokens(spec.data, original_length)
    samples = load_samples(
        spec.data, tokenizer, spec.target_length, seed=spec.seed, whole=whole, distinct=distinct, watch=watch
    )
    if isinstance(spec.objective, NeedleSpec):
        samples = _with_needles(samples, tokenizer, spec, spec.objective)
    if spec.tokens_scored is not None:
        samples = samples.cut(spec.tokens_scored)
    return samples


def _with_needles(samples: Samples, tokenizer: CachedTokenizer, spec: JobSpec, objective: NeedleSpec) -> Samples:
    def part(documents: SampleSet) -> SampleSet:
        options = {"digits": objective.digits, "repeats": objective.repeats, "seed": spec.seed}
        return needle_samples(documents, tokenizer, length=spec.target_length, **options)

    text = SampleSet("held_out_text", samples.held_out.samples)
    return Samples(part(samples.search), part(samples.validation), part(samples.held_out), text)


@dataclass(frozen=True)
class _Folder:
    ledger: Ledger
    forms: tuple[str, ...]
    """Names of the closed forms that the search starts from."""


def _open_folder(out: Path, spec: JobSpec) -> _Folder:
    """The output folder, which may be new or hold an earlier run of the same search."""
    identity = out / IDENTITY
    try:
        if out.exists() and Path(spec.model.id).is_dir() and out.samefile(spec.model.id):
            raise OutputError(f"{out} is the model itself: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        if (foreign := out / "factors.json").exists() and not identity.exists():
            raise OutputError(f"{foreign} does not belong to this search: choose another --out")
        earlier, *names = identity.read_text(encoding="utf-8").splitlines() if identity.exists() else [spec.sha256]
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror or error}") from None
    ledger = Ledger(out / "evaluations.jsonl")
    try:
        if earlier != spec.sha256 and len(ledger):
            raise OutputError(
                f"{out} holds results of another search (more than name and budget differ): choose another --out"
            )
        forms = tuple(" ".join(names).split()) if len(ledger) else FORMS  # the first versions wrote no names
        write_atomically(identity, f"{spec.sha256}\n{' '.join(forms)}\n".encode(), required=True)
    except OSError as error:
        ledger.close()
        raise cannot_write(identity, error) from None
    except OutputError:
        ledger.close()
        raise
    return _Folder(ledger, forms)
