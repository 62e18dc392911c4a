"""The default strategy: few numbers first, few documents first, then more of both.

1. closed forms, known factors and a few profiles (see :mod:`factor_search.strategies.profile`), on one document;
2. profiles of four numbers guided by a Gaussian process, on two documents;
3. curves of up to eight numbers around the best so far, likewise, on all documents;
4. CMA-ES over nearly every pair with small steps, in rounds, for as long as the budget lasts.

Where the space has a choice, the attention factor is tried after 2, and again with the initial tokens after the first
round of 4.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import cmaes
import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.methods import yarn_attention_factor
from factor_search.race import mean_difference, rungs
from factor_search.space import SearchSpace
from factor_search.strategies.contract import Generation, Result
from factor_search.strategies.profile import BOUNDS, FIRST, WIDTHS, Profile, Steps
from factor_search.strategies.surrogate import propose

Vector = NDArray[np.float64]
Script = Generator[Generation, Sequence[Result], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``auto`` does, fixed for every model."""

    generation: int = 4
    """Candidates that the Gaussian process proposes at a time."""
    promoted: int = 2
    """The best candidates that go on to more documents."""
    profile_documents: int = 2
    profile_generations: int = 3
    profile_radius: float = 1.0
    curve_knots: int = 7
    curve_radius: float = 0.3
    """In log lambda / log s."""
    smallest_radius: float = 0.05
    curve_generations_on_fewer: int = 2
    """On each number of documents between those of the profiles and all of them."""
    patience: int = 6
    """Generations without improvement after which the curve is left."""
    known_points: int = 120
    worst: float = 0.3
    """Nats above the best; what is worse counts as no worse, so that it does not bend the guess."""
    visible: float = 2e-4
    """Nats that count as an improvement."""
    polish_knots: tuple[int, int] = (16, 8)
    polish_sigma: tuple[float, float] = (0.03, 0.08)
    """First step of CMA-ES in log lambda / log s, in turn with the knots."""
    polish_population: int = 8
    polish_patience: int = 6
    """Populations without improvement that end a round."""
    fruitless: int = 6
    """Rounds in a row without a new candidate that end the search."""


SETTINGS = Settings()


class Auto:
    """See the module; a function of its seed and what it is told, and independent of the budget."""

    def __init__(
        self,
        space: SearchSpace,
        seeds: Sequence[Factors],
        documents: int,
        *,
        seed: int,
        stage: int = 0,
        settings: Settings = SETTINGS,
    ) -> None:
        """Set out.

        Args:
            space: the candidates allowed.
            seeds: known good factors, closed forms among them.
            documents: how many there are to search on.
            seed: of all randomness, with the stage and the generation.
            stage: position in a chain of searches.
            settings: what to do; the same for every model unless an experiment says otherwise.
        """
        self._space = space
        self._seeds = [space.factors(space.project(factors)) for factors in seeds]
        self._documents = documents
        self._randomness = (seed, stage)
        self._settings = settings
        self._generation = 0
        self._known: dict[Factors, tuple[float, ...]] = {}
        """Losses of each candidate on the first documents; none if it failed."""
        self._script = self._search()
        self._results: list[Result] | None = None
        self._asked: list[Factors] = []

    def ask(self) -> Generation:
        """What comes next; a generation that brings nothing new is passed over."""
        try:
            generation = next(self._script) if self._results is None else self._script.send(self._results)
        except StopIteration:
            return Generation()
        self._generation += 1
        self._asked = list(generation.candidates)
        self._results = []
        return generation

    def tell(self, results: Sequence[Result]) -> None:
        """Remember the losses of the last generation."""
        self._results = list(results)
        for factors, result in zip(self._asked, results, strict=False):
            if not result.losses or len(result.losses) >= len(self._known.get(factors, ())):
                self._known[factors] = result.losses  # none, too, of one that fails only on a later document
        for factors in self._asked[len(results) :]:
            self._known.setdefault(factors, ())

    def _search(self) -> Script:
        initial_tokens = self._space.initial_tokens[0]
        choices = self._space.attention_factors
        usual = yarn_attention_factor(self._space.scale)
        attention = min(choices, key=lambda factor: abs(factor - usual))
        first = {profile: profile.factors(self._space, initial_tokens, attention) for profile in FIRST}
        yield from self._evaluate([*self._seeds, *first.values()], 1)
        yield from self._search_profiles(first, initial_tokens, attention)
        yield from self._sweep_attention()
        yield from self._search_curves()
        yield from self._polish()

    def _search_profiles(self, first: dict[Profile, Factors], initial_tokens: int, attention: float) -> Script:
        settings, documents = self._settings, min(self._settings.profile_documents, self._documents)
        yield from self._promote(documents)
        points = {factors: np.array([p.step, p.foot, p.level, p.start]) for p, factors in first.items()}
        radius = settings.profile_radius
        for _ in range(settings.profile_generations):
            vectors = self._proposals(points, documents, WIDTHS, BOUNDS, radius)
            made = [Profile(*vector).factors(self._space, initial_tokens, attention) for vector in vectors]
            points |= dict(zip(made, vectors, strict=True))
            improved = yield from self._improve(made, documents)
            radius = min(1.3 * radius, 1.5) if improved else 0.7 * radius

    def _search_curves(self) -> Script:
        settings = self._settings
        least = min(settings.profile_documents, self._documents)
        between = [count for count in rungs(self._documents) if count > least]
        plan = [(count, settings.curve_generations_on_fewer) for count in between] + [(self._documents, 0)]
        yield from self._promote(plan[0][0])
        steps = Steps(self._space, self._best(plan[0][0]), settings.curve_knots)
        points = {steps.factors(steps.start): steps.start}
        radius = settings.curve_radius
        for documents, generations in plan:
            yield from self._promote(documents)
            yield from self._evaluate(list(points)[:1], documents)
            done = without = 0
            while done < generations or (not generations and without < settings.patience):
                widths = np.ones(len(steps.start))
                vectors = self._proposals(points, documents, widths, steps.bounds, radius)
                made = [steps.factors(vector) for vector in vectors]
                points |= dict(zip(made, vectors, strict=True))
                improved = yield from self._improve(made, documents)
                radius = min(1.3 * radius, 0.6) if improved else max(0.8 * radius, settings.smallest_radius)
                done, without = done + 1, 0 if improved else without + 1

    def _sweep_initial_tokens(self) -> Script:
        best = self._best(self._documents)
        others = [Factors(best.rescale_factors, n, best.attention_factor) for n in self._space.initial_tokens]
        yield from self._sweep([factors for factors in others if factors != best])

    def _sweep_attention(self) -> Script:
        choices, best = self._space.attention_factors, self._best(self._documents)
        at = min(range(len(choices)), key=lambda index: abs(choices[index] - best.attention_factor))
        near = [at + step for step in (-8, -4, -2, -1, 1, 2, 4, 8) if 0 <= at + step < len(choices)]
        yield from self._sweep([Factors(best.rescale_factors, best.initial_tokens, choices[i]) for i in near])

    def _sweep(self, others: list[Factors]) -> Script:
        """Try variants of the best on one document, and those on all that are not behind it there."""
        if not others:
            return
        best = self._best(self._documents)
        yield from self._evaluate(others, 1)
        to_beat = self._known[best][:1] or (math.inf,)
        ahead = [f for f in others if self._known.get(f) and self._known[f][:1] <= to_beat]
        ahead.sort(key=lambda factors: self._known[factors][0])
        yield from self._evaluate([best, *ahead[: self._settings.promoted]], self._documents)

    def _polish(self) -> Script:
        """Rounds of CMA-ES, each around the best so far; the choices of the space after the first."""
        fruitless, round_ = 0, 0
        while fruitless < self._settings.fruitless:
            found_new = yield from self._polish_once(round_)
            fruitless = 0 if found_new else fruitless + 1
            if round_ == 0:
                yield from self._sweep_initial_tokens()
                yield from self._sweep_attention()
            round_ += 1

    def _polish_once(self, round_: int) -> Generator[Generation, Sequence[Result], bool]:
        """Until the distribution has narrowed or stopped improving; whether there was any new candidate."""
        settings, found_new, without = self._settings, False, 0
        best = self._best(self._documents)
        yield from self._evaluate([best], self._documents)
        steps = Steps(self._space, best, settings.polish_knots[round_ % 2])
        cma = cmaes.CMA(
            mean=steps.start,
            sigma=settings.polish_sigma[round_ % 2],
            population_size=settings.polish_population,
            seed=int(self._rng().integers(2**31)),
        )
        while without < settings.polish_patience and not cma.should_stop():
            drawn = [(vector := cma.ask(), steps.factors(vector)) for _ in range(cma.population_size)]
            new = [factors for _, factors in drawn if factors not in self._known]
            if not new:
                break
            found_new = True
            without = 0 if (yield from self._improve(new, self._documents)) else without + 1
            losses = [self._estimate(factors, self._documents) for _, factors in drawn]
            worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0) + 1.0
            cma.tell([(vector, min(loss, worst)) for (vector, _), loss in zip(drawn, losses, strict=True)])
        return found_new

    def _evaluate(self, candidates: Iterable[Factors], documents: int) -> Script:
        """Ask for those that are not known on as many documents and have not failed."""
        wanted = [factors for factors in dict.fromkeys(candidates) if self._wanting(factors, documents)]
        if wanted:
            yield Generation(tuple(wanted), documents if documents < self._documents else None)

    def _wanting(self, factors: Factors, documents: int) -> bool:
        losses = self._known.get(factors)
        return losses is None or 0 < len(losses) < documents

    def _improve(self, candidates: Sequence[Factors], documents: int) -> Generator[Generation, Sequence[Result], bool]:
        before = self._estimate(self._best(documents), documents)
        yield from self._evaluate([factors for factors in candidates if factors not in self._known], documents)
        return self._estimate(self._best(documents), documents) < before - self._settings.visible

    def _promote(self, documents: int) -> Script:
        """Take the best on to more documents."""
        most = max(len(losses) for losses in self._known.values())
        ranked = sorted((f for f, losses in self._known.items() if losses), key=lambda f: self._rank(f, most))
        yield from self._evaluate(ranked[: self._settings.promoted], documents)

    def _best(self, documents: int) -> Factors:
        """The candidate with the lowest loss on so many documents, or as many as any has been evaluated on."""
        most = min(max(len(losses) for losses in self._known.values()), documents)
        return min(self._known, key=lambda factors: self._rank(factors, most))

    def _rank(self, factors: Factors, documents: int) -> tuple[bool, float]:
        losses = self._known[factors]
        return len(losses) < max(documents, 1), math.fsum(losses[:documents]) / max(len(losses[:documents]), 1)

    def _estimate(self, factors: Factors, documents: int) -> float:
        """Its mean loss on so many documents, by its paired difference to the best where it was not on all of them."""
        losses, best = self._known.get(factors, ()), self._known[self._best(documents)][:documents]
        if not losses or not best:
            return math.inf
        return math.fsum(best) / len(best) + mean_difference(losses[:documents], best)

    def _proposals(
        self, points: dict[Factors, Vector], documents: int, widths: Vector, bounds: Vector, radius: float
    ) -> list[Vector]:
        estimates = {factors: self._estimate(factors, documents) for factors in points}
        known = [factors for factors, loss in estimates.items() if math.isfinite(loss)]
        known = sorted(known, key=lambda factors: estimates[factors])[: self._settings.known_points]
        if not known:
            return []
        ceiling = estimates[known[0]] + self._settings.worst
        return propose(
            np.array([points[factors] for factors in known]),
            [min(estimates[factors], ceiling) for factors in known],
            widths=widths,
            bounds=bounds,
            radius=radius,
            count=self._settings.generation,
            rng=self._rng(),
        )

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([*self._randomness, self._generation])
