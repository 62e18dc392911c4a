"""A whole search job in this process: load, search, choose on validation documents, measure on held-out ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from factor_search.cache import write_atomically
from factor_search.documents import matching_files
from factor_search.errors import OutputError, SearchFailedError, SpecError
from factor_search.evaluation import OK, PRUNED, Evaluation, Evaluator, LocalEvaluator
from factor_search.factors import Factors
from factor_search.geometry import Geometry, read_geometry
from factor_search.injection import probe
from factor_search.ledger import Ledger, RecordedEvaluator
from factor_search.methods import closed_forms
from factor_search.models import LoadedModel, load_config, load_model
from factor_search.needle import needle_samples
from factor_search.samples import Samples, SampleSet, Watch, check_vocabulary, load_samples
from factor_search.search import SearchState, search
from factor_search.space import SearchSpace
from factor_search.spec import DataSpec, EvolutionSpec, JobSpec, NeedleSpec, WarmStartSpec
from factor_search.strategies import Strategy, build_strategy
from factor_search.tokens import CachedTokenizer
from factor_search.warm_start import embedded, starting_points

FINALISTS = 5
"""Candidates that are scored again on the validation documents, beside every closed form."""
IDENTITY = ".factor-search"
"""File in the output folder that says which search its results are of."""
SEED_ORDER = ("yarn", "ntk-critical", "ntk", "llama3", "pi", "dynamic-ntk", "entropy-abf", "as-configured", "none")


@dataclass
class JobWatcher:
    """What a job tells while it runs; every member may be replaced."""

    phase: Callable[[str], None] = lambda text: None
    candidate: Callable[[SearchState], None] = lambda state: None
    scored: Callable[[str, int, int], None] = lambda part, done, total: None
    documents: Watch | None = None


@dataclass
class JobResult:
    """Everything a report is made of."""

    spec: JobSpec
    geometry: Geometry
    samples: Samples
    state: SearchState
    methods: dict[str, Factors]
    """The closed forms, and known factors to compare with, by name."""
    finalists: dict[str, Factors] = field(default_factory=dict)
    validation: dict[str, Evaluation] = field(default_factory=dict)
    """By name of method or finalist."""
    held_out: dict[str, Evaluation] = field(default_factory=dict)
    """By name of method, and of the winner."""
    held_out_text: dict[str, Evaluation] = field(default_factory=dict)
    """The same on the plain text of the held-out documents, where that is not the objective."""
    winner: str = ""
    """Name of the finalist or method that is best on the validation documents."""
    interrupted: bool = False

    @property
    def winning_factors(self) -> Factors:
        """The winner's factors; before the choice was made, the best of the search."""
        if self.winner:
            return self.candidates[self.winner]
        assert self.state.best is not None
        return self.state.best.factors

    @property
    def candidates(self) -> dict[str, Factors]:
        """Closed forms and finalists, by name."""
        return self.methods | self.finalists


def run_job(spec: JobSpec, out: Path, watcher: JobWatcher | None = None) -> JobResult:
    """Run a search and measure its result; evaluations are kept in ``out`` and found there when run again.

    A keyboard interrupt after the first candidate gives a partial result.

    Raises:
        FactorSearchError: see its subclasses; nothing that was written before is lost.
        KeyboardInterrupt: before the first candidate.
    """
    watcher = watcher or JobWatcher()
    spec = embedded(spec)
    geometry = read_geometry(load_config(spec.model), spec.model.original_length)
    _check_fits(spec, geometry)
    with _open_folder(out, spec) as ledger:
        watcher.phase(f"loading {spec.model.id}")
        loaded = load_model(spec.model)
        probe(loaded.model, loaded.geometry)
        watcher.phase("reading documents")
        samples = read_samples(spec, loaded, watcher.documents)
        with LocalEvaluator(loaded, spec.target_length, spec.stride) as local:
            return search_and_measure(spec, geometry, samples, RecordedEvaluator(local, ledger), watcher)


def check_possible(spec: JobSpec) -> None:
    """Refuse what can be seen to be impossible without loading the model or reading a document.

    Raises:
        DataError: a path or glob matches nothing.
        ModelError: a local model's configuration is broken, or has no rotary position embeddings.
        FactorsError: what a warm start names cannot be read, or belongs to another model.
        SpecError: the target length, or the space, does not fit a local model.
    """
    spec = embedded(spec)
    for pattern in [*(spec.data.files or ()), *(spec.data.held_out_files or ())]:
        matching_files(pattern)
    if Path(spec.model.id).is_dir():
        _check_fits(spec, read_geometry(load_config(spec.model), spec.model.original_length))


def _check_fits(spec: JobSpec, geometry: Geometry) -> None:
    """Refuse a space, or factors to start from, that do not fit the model."""
    SearchSpace.of(spec, geometry)
    _seeds(spec, geometry)


def compared_methods(spec: JobSpec, geometry: Geometry) -> dict[str, Factors]:
    """What is measured beside the winner, by name: every closed form, and known factors with a name to compare as.

    Where the space has a scale of its own, closed forms are those for that scale, with the attention factor that the
    space has if it has a single one: only so could they take the winner's place.

    Raises:
        FactorsError: known factors belong to another model.
        SpecError: they have the name of a closed form.
    """
    forms = closed_forms(geometry, _formula_length(spec, geometry))
    if spec.space.scale is not None and isinstance(spec.space.attention_factor, float):
        attention = spec.space.attention_factor
        forms = {name: Factors(one.rescale_factors, one.initial_tokens, attention) for name, one in forms.items()}
    for known in spec.warm_start.factors:
        if known.compare_as in forms:
            raise SpecError(f"warm_start: {known.compare_as} cannot be the name of known factors, it is taken")
        if known.compare_as is not None:
            alone = WarmStartSpec(factors=[known])
            forms[known.compare_as], *_ = starting_points(alone, geometry, _formula_length(spec, geometry))
    return forms


def _formula_length(spec: JobSpec, geometry: Geometry) -> int:
    """The length that closed forms and factors to start from are for."""
    return spec.target_length if spec.space.scale is None else round(spec.space.scale * geometry.original_length)


def strategy_of(spec: JobSpec, geometry: Geometry, documents: int) -> Strategy:
    """The strategy of a job, with whatever the search starts from embedded in the specification.

    Raises:
        FactorsError: known factors to start from belong to another model.
        SpecError: the space does not fit the model.
    """
    space = SearchSpace.of(spec, geometry)
    seeds = _seeds(spec, geometry)
    return build_strategy(spec.strategy, space, seeds, spec.seed, documents=documents)


def _seeds(spec: JobSpec, geometry: Geometry) -> list[Factors]:
    """Where the search starts: known factors first, then every closed form.

    Raises:
        FactorsError: known factors belong to another model.
        SpecError: they leave no room for the closed forms.
    """
    assert not spec.warm_start.files, "read before a search begins"
    assert not spec.warm_start.jobs, "looked up before a search begins"
    known = starting_points(spec.warm_start, geometry, _formula_length(spec, geometry))
    methods = compared_methods(spec, geometry)
    forms = [methods[name] for name in SEED_ORDER if name in methods]
    if known and isinstance(spec.strategy, EvolutionSpec) and spec.strategy.population < len(known) + len(forms):
        raise SpecError(
            f"strategy.population is {spec.strategy.population}, but {len(known)} warm starts and {len(forms)} closed "
            f"forms come first: make it {len(known) + len(forms)} or more"
        )
    return known + forms


def read_samples(spec: JobSpec, loaded: LoadedModel, watch: Watch | None = None) -> Samples:
    """The samples of a job for the model as loaded.

    Raises:
        DataError: documents cannot be read, too few of them are long enough, the target is too short for what the
            objective puts into them, or the tokenizer is another model's.
    """
    tokenizer = CachedTokenizer(loaded.tokenizer)
    whole = spec.stride is not None
    distinct = distinct_tokens(spec.data, loaded.geometry)
    samples = load_samples(
        spec.data, tokenizer, spec.target_length, seed=spec.seed, whole=whole, distinct=distinct, watch=watch
    )
    if isinstance(spec.objective, NeedleSpec):
        samples = _with_needles(samples, tokenizer, spec, spec.objective)
    if spec.tokens_scored is not None:
        samples = samples.cut(spec.tokens_scored)
    for part in (samples.search, samples.validation, samples.held_out):
        check_vocabulary(part, loaded.model.get_input_embeddings().num_embeddings)
    return samples


def distinct_tokens(data: DataSpec, geometry: Geometry) -> int | None:
    """How many leading tokens no two documents share; None is the target length.

    Jobs of different lengths on the same documents must agree, and none of them is shorter than the original length.
    """
    return None if data.least_tokens is None else min(geometry.original_length, data.least_tokens)


def _with_needles(samples: Samples, tokenizer: CachedTokenizer, spec: JobSpec, objective: NeedleSpec) -> Samples:
    def part(documents: SampleSet) -> SampleSet:
        options = {"digits": objective.digits, "repeats": objective.repeats, "seed": spec.seed}
        return needle_samples(documents, tokenizer, length=spec.target_length, **options)

    text = SampleSet("held_out_text", samples.held_out.samples)
    return Samples(part(samples.search), part(samples.validation), part(samples.held_out), text)


def search_and_measure(
    spec: JobSpec, geometry: Geometry, samples: Samples, evaluator: Evaluator, watcher: JobWatcher
) -> JobResult:
    """What is the same wherever candidates are evaluated: search, choose, measure.

    A keyboard interrupt after the first candidate gives a partial result. Whatever the search starts from is embedded
    in the specification (see :func:`factor_search.warm_start.embedded`).

    Raises:
        FactorsError: known factors to start from belong to another model.
        SearchFailedError: no candidate could be evaluated.
        KeyboardInterrupt: before the first candidate.
    """
    strategy = strategy_of(spec, geometry, len(samples.search.samples))
    methods = compared_methods(spec, geometry)
    watcher.phase("searching")
    state = search(
        strategy,
        evaluator,
        samples.search,
        spec.budget,
        watcher.candidate,
        error_rate=spec.racing_error_rate,
        original_length=geometry.original_length,
    )
    if state.best is None:
        raise KeyboardInterrupt
    if state.best.outcome not in (OK, PRUNED):
        outcomes = Counter(evaluation.outcome for evaluation in state.evaluations)
        named = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in outcomes.most_common())
        raise SearchFailedError(f"none of {len(state.candidates)} candidates could be evaluated: {named}")
    result = JobResult(spec, geometry, samples, state, methods)
    result.interrupted = state.ended_by == "interrupt"
    if not result.interrupted:
        try:
            _choose(result, evaluator, watcher)
        except KeyboardInterrupt:
            result.interrupted = True
    return result


def finalists(state: SearchState) -> list[Factors]:
    """The best few on the search documents, and what was the best when a half, a quarter and an eighth was spent.

    The longer a search goes on, the more its best is fitted to the search documents; an earlier best may do better on
    others, while the best few at the end are much alike.
    """
    measured = [one for one in state.candidates.values() if one.outcome in (OK, PRUNED)]
    # most documents first; stable: ties keep their order
    measured.sort(key=lambda one: (-len(one.losses), one.summary.loss))
    ranked = [evaluation.factors for evaluation in measured]
    earlier = []
    for share in (2, 4, 8):
        until = [best.factors for count, best in state.best_at if count <= len(state.candidates) / share]
        earlier += until[-1:]
    return list(dict.fromkeys([*ranked[:2], *earlier, *ranked[2:]]))[:FINALISTS]


def _choose(result: JobResult, evaluator: Evaluator, watcher: JobWatcher) -> None:
    """Score finalists and closed forms on validation documents, the winner and closed forms on held-out ones."""
    known = set(result.methods.values())
    best = enumerate(finalists(result.state), start=1)
    result.finalists = {f"found-{n}": factors for n, factors in best if factors not in known}
    watcher.phase("choosing on validation documents")
    validation = _score(result.candidates, result.samples.validation, evaluator, watcher)
    winner = min(validation, key=lambda name: validation[name].loss)
    watcher.phase("measuring on held-out documents")
    reported = result.methods | {winner: result.candidates[winner]}
    held_out = _score(reported, result.samples.held_out, evaluator, watcher)
    if result.samples.held_out_text is not None:
        watcher.phase("measuring on the plain text of held-out documents")
        result.held_out_text = _score(reported, result.samples.held_out_text, evaluator, watcher)
    result.validation, result.held_out, result.winner = validation, held_out, winner


def _score(
    candidates: dict[str, Factors], samples: SampleSet, evaluator: Evaluator, watcher: JobWatcher
) -> dict[str, Evaluation]:
    scored = {}
    evaluations = evaluator.evaluate_all(list(candidates.values()), samples)
    for number, (name, evaluation) in enumerate(zip(candidates, evaluations, strict=True), start=1):
        scored[name] = evaluation
        watcher.scored(samples.part, number, len(candidates))
    return scored


def _open_folder(out: Path, spec: JobSpec) -> Ledger:
    """The ledger in the output folder, which may be new or hold an earlier run of the same search."""
    identity = out / IDENTITY
    try:
        if out.exists() and Path(spec.model.id).is_dir() and out.samefile(spec.model.id):
            raise OutputError(f"{out} is the model itself: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        if (foreign := out / "factors.json").exists() and not identity.exists():
            raise OutputError(f"{foreign} is not of an earlier run of this search: choose another --out")
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
        raise OutputError(f"cannot write {identity}: {error.strerror or error}") from None
    except OutputError:
        ledger.close()
        raise
    return ledger
