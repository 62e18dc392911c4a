"""A search job in this process: the model is loaded, documents are read, evaluations are kept in a folder."""

from pathlib import Path

from factor_search.errors import OutputError
from factor_search.files.atomic import cannot_write, write_atomically
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.model.checkpoint_files import is_local
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import check_finite, probe
from factor_search.model.loading import LoadedModel, check_weights, load_config, load_model, load_tokenizer
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult, JobWatcher, search_and_measure
from factor_search.search.warm_start import embedded
from factor_search.spec import JobSpec, NeedleSpec
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
    watcher = watcher or JobWatcher()
    spec = embedded(spec)
    problem = SearchProblem.of(spec, read_geometry(load_config(spec.model), spec.model.original_length))
    with _open_folder(out, spec) as ledger:
        watcher.phase(f"loading {spec.model.id}")
        loaded = load_model(spec.model)
        probe(loaded.model, loaded.geometry)
        if loaded.geometry != problem.geometry:  # what the live model computes with counts
            problem = SearchProblem.of(spec, loaded.geometry)
        watcher.phase("reading documents")
        samples = read_samples(spec, loaded, watcher.documents)
        with LocalEvaluator(loaded, spec.target_length, spec.stride) as local:
            return search_and_measure(problem, samples, RecordedEvaluator(local, ledger), watcher)


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


def _open_folder(out: Path, spec: JobSpec) -> Ledger:
    """The ledger in the output folder, which may be new or hold an earlier run of the same search."""
    identity = out / IDENTITY
    try:
        if out.exists() and Path(spec.model.id).is_dir() and out.samefile(spec.model.id):
            raise OutputError(f"{out} is the model itself: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        if (foreign := out / "factors.json").exists() and not identity.exists():
            raise OutputError(f"{foreign} does not belong to this search: choose another --out")
        earlier = identity.read_text(encoding="utf-8") if identity.exists() else spec.sha256
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror or error}") from None
    ledger = Ledger(out / "evaluations.jsonl")
    try:
        if earlier != spec.sha256 and len(ledger):
            raise OutputError(
                f"{out} holds results of another search (more than name and budget differ): choose another --out"
            )
        write_atomically(identity, spec.sha256.encode(), required=True)
    except OSError as error:
        ledger.close()
        raise cannot_write(identity, error) from None
    except OutputError:
        ledger.close()
        raise
    return ledger
