"""Searches on the models of :mod:`bench.models`, measured on documents that no search used."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bench.control_as_shipped import ControlAsShipped
from bench.control_longrope2 import ControlLongRope2
from bench.models import BenchModel, bench_model
from factor_search.factors import Factors
from factor_search.files.cache import cache_folder
from factor_search.measure.evaluation import OK, PRUNED, Evaluation, Evaluator
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.methods import OWN, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.model.loading import load_model
from factor_search.search.loop import SearchState, search
from factor_search.search.problem import FORMS, SearchProblem
from factor_search.search.selection import finalists
from factor_search.search.strategies import Strategy
from factor_search.search.strategies.auto import SETTINGS
from factor_search.search.strategies.profile import FIRST
from factor_search.spec import AutoSpec, BudgetSpec, DataSpec, JobSpec, ModelSpec, RacingSpec, StrategySpec
from factor_search.text.samples import Sample, Samples, SampleSet

CONTROL, CONTROL_2 = "control-as-shipped", "control-longrope2"
CONTROLS = {CONTROL: ControlAsShipped, CONTROL_2: ControlLongRope2}
SPLIT_SEED = 0
"""Decides how documents are split; the same for every seed of a search."""
MOST_POINTS = 40
"""Recommendations of a run that are measured on held-out documents, besides those at MARKS."""
MARKS = (1, 2, 5, 10, 20, 40)
"""Numbers of full evaluations after which the current recommendation is always measured."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search to be run."""

    name: str
    """Name of its row: the strategy, with the budget if a strategy has two."""
    strategy: StrategySpec | None
    """None means the control of this name."""
    seed: int
    budget: BudgetSpec
    racing: RacingSpec | bool | None = None
    """As in a job: None means that only ``auto`` races."""
    forms: tuple[str, ...] = FORMS
    """Names of the closed forms that the search starts from."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A recommendation, and when it was made."""

    tokens: int
    """Tokens evaluated in the search until then."""
    perplexity: float
    """Perplexity on the held-out documents."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate on the documents that no search used."""

    validation_loss: float
    """Mean in nats per token; infinite if the candidate cannot be evaluated."""
    perplexity: float
    """Perplexity on the held-out documents; infinite if the candidate cannot be evaluated."""
    held_out_losses: tuple[float, ...]
    """Loss of each document, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A search and its recommendations."""

    name: str
    seed: int
    settings: str
    ended_by: str
    tokens: int
    """Tokens evaluated in the search."""
    candidates: int
    changes: int
    """How often the recommended candidate changed; ``points`` has some of these changes."""
    points: tuple[Point, ...]
    final: Measured
    """The final recommendation."""
    reported: Measured
    """What a job would report: the best of its finalists and the closed forms on the validation documents."""


@dataclass(frozen=True, kw_only=True)
class ModelRuns:
    """All runs on a model."""

    model: str
    role: str
    full_evaluation: int
    """Tokens of one candidate on all search documents."""
    validation_tokens: int
    """Tokens of one candidate on the validation documents."""
    held_out_tokens: tuple[int, ...]
    """Tokens of each held-out document."""
    closed_forms: dict[str, Measured]
    runs: tuple[Run, ...]

    @property
    def published(self) -> dict[str, Measured]:
        """The closed forms that others have published: without those whose constants were fitted here."""
        return {name: one for name, one in self.closed_forms.items() if name not in OWN}


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A model, its documents, and an evaluator that stores its results."""

    geometry: Geometry
    samples: Samples
    target_length: int
    evaluator: Evaluator

    @property
    def full_evaluation(self) -> int:
        """Tokens of one candidate on all search documents."""
        return sum(predicted(self.samples.search))

    def evaluate(self, factors: Factors, samples: SampleSet) -> Evaluation:
        """Evaluate one candidate on all documents of a part."""
        return next(iter(self.evaluator.evaluate_all([factors], samples)))


@contextmanager
def workplace(
    model: str | BenchModel, search_documents: int, validation_documents: int, held_out_documents: int
) -> Iterator[Workplace]:
    """One process at a time for each model and choice of search documents: the ledger is locked.

    A model that is given by its name is trained if it is not in the cache. Held-out documents are as many as wanted, or
    all that the model has besides the others.
    """
    if isinstance(model, str):
        model = bench_model(model)
    documents = model.documents()
    distinct = len({tokens.tobytes() for tokens in documents})
    held_out = min(held_out_documents, max(distinct - search_documents - validation_documents, 1))
    samples = split_documents(documents, search_documents, validation_documents, held_out)
    loaded = load_model(ModelSpec(id=str(model.folder), device="cpu"))
    file = cache_folder("bench") / f"{model.folder.name}-{samples.search.sha256[:12]}.jsonl"
    with Ledger(file) as ledger, LocalEvaluator(loaded, model.recipe.target) as local:
        yield Workplace(
            geometry=loaded.geometry,
            samples=samples,
            target_length=model.recipe.target,
            evaluator=RecordedEvaluator(local, ledger),
        )


def split_documents(documents: Sequence[np.ndarray], *counts: int) -> Samples:
    """Split distinct documents into the given numbers for search, validation and held-out."""
    distinct = {hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(): tokens for tokens in documents}
    if len(distinct) < sum(counts):
        raise SystemExit(f"{sum(counts)} documents are wanted, but the model has {len(distinct)}")
    pool = [Sample(f"document {n}", tokens, sha256) for n, (sha256, tokens) in enumerate(distinct.items())]
    order = np.random.default_rng([SPLIT_SEED, len(pool)]).permutation(len(pool)).tolist()
    parts = []
    for part, count in zip(("search", "validation", "held_out"), counts, strict=True):
        parts.append(SampleSet(part, tuple(pool[i] for i in order[:count])))
        order = order[count:]
    return Samples(*parts)


def predicted(samples: SampleSet) -> tuple[int, ...]:
    """The number of predicted tokens in each document."""
    return tuple(len(sample.tokens) - 1 for sample in samples.samples)


def run_search(plan: Plan, place: Workplace) -> tuple[SearchState, list[tuple[int, Factors]]]:
    """Run a search; returns its state and each recommendation with the tokens evaluated until then."""
    changes: list[tuple[int, Factors]] = []

    def watch(state: SearchState) -> None:
        best = state.best
        if best and best.outcome in (OK, PRUNED) and (not changes or changes[-1][1] != best.factors):
            changes.append((state.tokens, best.factors))

    strategy, error_rate = _strategy(plan, place)
    state = search(
        strategy,
        place.evaluator,
        place.samples.search,
        plan.budget,
        watch,
        error_rate=error_rate,
        original_length=place.geometry.original_length,
    )
    if state.ended_by == "interrupt":
        raise KeyboardInterrupt
    return state, changes


def search_of(spec: JobSpec, place: Workplace) -> tuple[SearchState, SearchProblem]:
    """Run the search of a specification, of which the model and the documents are those of the workplace."""
    problem = SearchProblem.of(spec, place.geometry)
    state = search(
        problem.strategy(len(place.samples.search.samples)),
        place.evaluator,
        place.samples.search,
        spec.budget,
        error_rate=spec.racing_error_rate,
        original_length=place.geometry.original_length,
    )
    return state, problem


def _strategy(plan: Plan, place: Workplace) -> tuple[Strategy, float | None]:
    """The strategy as a job would build it, and the error rate of its races."""
    if plan.strategy is None:
        return CONTROLS[plan.name](place.geometry, place.target_length, seed=plan.seed), None
    spec = JobSpec(
        model=ModelSpec(id="bench"),
        data=DataSpec(files=["bench"]),
        target_length=place.target_length,
        strategy=plan.strategy,
        budget=plan.budget,
        racing=plan.racing,
        seed=plan.seed,
    )
    problem = SearchProblem.of(spec, place.geometry, plan.forms)
    return problem.strategy(len(place.samples.search.samples)), spec.racing_error_rate


def settings_of(name: str, strategy: StrategySpec | None) -> str:
    """Everything that a strategy's behaviour depends on besides its seed."""
    if isinstance(strategy, AutoSpec):
        return f"{SETTINGS} {FIRST}"
    return repr(strategy) if strategy is not None else f"{CONTROLS[name].__name__}()"


def run_plan(plan: Plan, place: Workplace) -> Run:
    """Run a search, then measure its recommendations."""
    state, changes = run_search(plan, place)
    marks = [mark * place.full_evaluation for mark in MARKS]
    shown = [changes[i] for i in thinned([tokens for tokens, _ in changes], marks)]
    return Run(
        name=plan.name,
        seed=plan.seed,
        settings=settings_of(plan.name, plan.strategy),
        ended_by=state.ended_by,
        tokens=state.tokens,
        candidates=len(state.candidates),
        changes=len(changes),
        points=tuple(
            Point(tokens=tokens, perplexity=perplexity_of(place.evaluate(factors, place.samples.held_out)))
            for tokens, factors in shown
        ),
        final=measured(changes[-1][1], place),
        reported=measured(finalist_of(state, place), place),
    )


def finalist_of(
    state: SearchState, place: Workplace, may_win: Callable[[Factors], bool] = lambda factors: True
) -> Factors:
    """What a job would report: the best of its finalists and the closed forms on the validation documents."""
    forms = closed_forms(place.geometry, place.target_length).values()
    choices = [one for one in (*finalists(state), *forms) if may_win(one)]
    return min(choices, key=lambda one: place.evaluate(one, place.samples.validation).loss)


def measured(factors: Factors, place: Workplace) -> Measured:
    """Measure a candidate on validation and held-out documents."""
    held_out = place.evaluate(factors, place.samples.held_out)
    return Measured(
        validation_loss=place.evaluate(factors, place.samples.validation).loss,
        perplexity=perplexity_of(held_out),
        held_out_losses=held_out.losses,
    )


def perplexity_of(evaluation: Evaluation) -> float:
    """The mean loss; infinite if the candidate could not be evaluated."""
    return evaluation.summary.perplexity if evaluation.outcome == OK else float("inf")


def thinned(tokens: Sequence[int], marks: Sequence[int], most: int = MOST_POINTS) -> list[int]:
    """Which of the recommendations made at these tokens to measure: the last, those in force at the marks, and those
    in force at ``most`` numbers of tokens in equal ratios."""
    if len(tokens) <= most:
        return list(range(len(tokens)))
    moments = [*np.geomspace(tokens[0], tokens[-1], most), *marks, tokens[-1]]
    in_force = np.searchsorted(tokens, np.round(moments), side="right") - 1
    return sorted({int(index) for index in in_force if index >= 0})


def run_plans(model: str, role: str, plans: Sequence[Plan], place: Workplace) -> ModelRuns:
    """Run all searches on a model, one after the other."""
    forms = closed_forms(place.geometry, place.target_length)
    runs: list[Run] = []
    for plan in plans:
        start = time.monotonic()
        runs.append(run_plan(plan, place))
        run = runs[-1]
        print(
            f"{model}: {run.name}, seed {run.seed}: {run.candidates:,} candidates, {run.tokens:,} tokens, ended by "
            f"{run.ended_by}, held-out perplexity {run.final.perplexity:.4f}; {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return ModelRuns(
        model=model,
        role=role,
        full_evaluation=place.full_evaluation,
        validation_tokens=sum(predicted(place.samples.validation)),
        held_out_tokens=predicted(place.samples.held_out),
        closed_forms={name: measured(factors, place) for name, factors in forms.items()},
        runs=tuple(runs),
    )
