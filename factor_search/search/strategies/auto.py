"""The default strategy: it starts with few parameters on few documents, and increases both.

1. Evaluate closed forms, known factors and twelve profiles (:mod:`factor_search.search.strategies.profile`) on one
   document: five others and seven of these where a model has pairs with more than 64 rotations, four more where short
   texts have a limit, and four more for scales of twelve and more.
2. Search profiles of four numbers with a Gaussian process, on two documents.
3. Vary the initial tokens and the attention factor of the best candidate, where the space has choices. At scales of
   twelve and more, every fourth number of initial tokens, and then those beside the best.
4. Search profiles again, on four documents. At scales of twelve and more, longer and on two documents first.
5. Scale down the pairs before the step of the best candidate. At scales of twelve and more, take the pair in the
   middle of the step out of it, and move one of the pairs beside it into it (that is tried after 2, too).
6. Search curves of up to eight numbers around the best candidate with the Gaussian process, on four documents and then
   on all.
7. Repeat 5 and the variation of the initial tokens, and try the closed forms that are not usual.
8. Run CMA-ES over nearly every pair with small step sizes, in rounds, until the budget ends. Repeat 5 after the first
   two rounds, and 3 after the first.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import astuple, dataclass, replace

import cmaes
import numpy as np

from factor_search.factors import Factors
from factor_search.measure.race import rungs
from factor_search.methods import yarn_attention_factor
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Check, Generation, Result, no_check
from factor_search.search.strategies.profile import (
    BOUNDS,
    FAR_BOUNDS,
    LARGE_SCALE,
    LARGE_SCALE_WIDTHS,
    SHORT_TEXTS,
    WIDTHS,
    Profile,
    Steps,
    first_profiles,
    reaches_far,
    scaled_before_step,
    sharpened,
    softened,
)
from factor_search.search.strategies.progressive import PROMOTED, Phase, Progressive, Vector


@dataclass(frozen=True)
class ProfileSearch:
    """One search of profiles."""

    documents: int
    generations: int
    radius: float
    """First radius of the trust region, in the widths of each number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ``auto``, the same for every model."""

    profile_searches: tuple[ProfileSearch, ...] = (ProfileSearch(2, 3, 1.0), ProfileSearch(4, 2, 0.5))
    """The initial tokens and the attention factor are varied after the first of them."""
    large_scale_profile_searches: tuple[ProfileSearch, ...] = (
        ProfileSearch(2, 3, 1.0),
        ProfileSearch(2, 5, 0.7),
        ProfileSearch(4, 1, 0.5),
    )
    """The same for scales of twelve and more, where losses are more rugged."""
    initial_tokens_strides: tuple[int, ...] = (4, 2, 1)
    """Distances in the list of choices at which numbers of initial tokens are tried at such scales."""
    sweep_documents: int = 2
    """Documents on which all variants of the best candidate are evaluated first."""
    before_step_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Factors of log lambda at the pairs before the step of the best candidate."""
    into_step_shares: tuple[float, ...] = (0.25, 0.5)
    """Shares of the step by which a pair beside it is moved into it, at scales of twelve and more."""
    before_step_rounds: int = 2
    """After how many rounds of CMA-ES all this is tried again."""
    curve_knots: int = 7
    curve_width: float = 0.1
    """Change of a rise that has a noticeable effect, in log lambda / log s."""
    curve_radius: tuple[float, float, float] = (0.3, 0.7, 1.4)
    """Smallest, first and largest radius of the trust region, in widths."""
    curve_generations_on_fewer: int = 2
    """Generations on each number of documents between those of the first profiles and all of them."""
    patience: int = 6
    """Generations without improvement that end the search of curves."""
    polish_knots: tuple[int, int] = (16, 8)
    """Knots of the rounds of CMA-ES, alternating."""
    polish_sigma: tuple[float, float] = (0.03, 0.08)
    """First step size of CMA-ES in log lambda / log s, alternating with the knots."""
    polish_population: int = 8
    polish_patience: int = 6
    """Populations without improvement that end a round."""
    fruitless: int = 6
    """Rounds in a row without a new candidate that end the search."""


SETTINGS = Settings()


class Auto(Progressive):
    """The default strategy, described in the module's docstring; it does not depend on the budget."""

    def __init__(
        self,
        space: SearchSpace,
        seeds: Sequence[Factors],
        documents: int,
        *,
        seed: int,
        settings: Settings = SETTINGS,
        check: Check = no_check,
        later: Sequence[Factors] = (),
    ) -> None:
        """Prepare the search.

        Args:
            space: the candidates allowed.
            seeds: closed forms and known factors.
            documents: number of search documents.
            seed: determines all random numbers, together with the number of the generation.
            settings: the same for every model; experiments may change them.
            check: called while the strategy proposes; may raise to stop it.
            later: more closed forms, which are tried before CMA-ES; small budgets end before them.
        """
        super().__init__(documents, seed=seed, check=check)
        self._space = space
        self._seeds = [space.factors(space.project(factors)) for factors in seeds]
        self._later = [space.factors(space.project(factors)) for factors in later]
        self._settings = settings
        self._profiles: dict[tuple[float, ...], Vector] = {}
        """The four numbers of each profile, by its rescale factors."""

    @property
    def _large(self) -> bool:
        return self._space.scale >= LARGE_SCALE

    def _search(self) -> Phase:
        first, *others = self._profile_searches()
        yield from self._evaluate([*self._seeds, *self._first_profiles()], 1)
        yield from self._search_profiles(first)
        yield from self._sweep_beside_step(first.documents)
        yield from self._sweep_initial_tokens(first.documents)
        yield from self._sweep_attention(first.documents)
        for search in others:
            yield from self._search_profiles(search)
        yield from self._sweep_step(others[-1].documents)
        yield from self._search_curves()
        yield from self._sweep_step(self._documents)
        yield from self._sweep_initial_tokens(self._documents)
        yield from self._sweep([factors for factors in self._later if factors not in self._known], self._documents)
        yield from self._polish()

    def _profile_searches(self) -> list[ProfileSearch]:
        settings = self._settings
        searches = settings.large_scale_profile_searches if self._large else settings.profile_searches
        return [replace(search, documents=min(search.documents, self._documents)) for search in searches]

    def _first_profiles(self) -> list[Factors]:
        initial_tokens, choices = self._space.initial_tokens[0], self._space.attention_factors
        usual = self._space.first_attention or yarn_attention_factor(self._space.scale)
        attention = min(choices, key=lambda factor: abs(factor - usual))
        profiles = first_profiles(self._space)
        if self._space.first_attention is not None:
            profiles = (*SHORT_TEXTS, *profiles)
        return [self._of_profile(profile, initial_tokens, attention) for profile in profiles]

    def _of_profile(self, profile: Profile, initial_tokens: int, attention: float) -> Factors:
        factors = profile.factors(self._space, initial_tokens, attention)
        self._profiles[factors.rescale_factors] = np.array(astuple(profile))
        return factors

    def _search_profiles(self, search: ProfileSearch) -> Phase:
        """Search profiles with the initial tokens and the attention factor of the best candidate."""
        bounds = FAR_BOUNDS if reaches_far(self._space) else BOUNDS
        widths = LARGE_SCALE_WIDTHS if self._large else WIDTHS
        documents, radius = search.documents, search.radius
        yield from self._promote(documents)
        for _ in range(search.generations):
            best = self._best(documents)
            losses = self._losses_like(best, documents)
            known = [(vector, losses[shape]) for shape, vector in self._profiles.items() if shape in losses]
            vectors = self._proposals(known, widths, bounds, radius)
            made = [self._of_profile(Profile(*v), best.initial_tokens, best.attention_factor) for v in vectors]
            improved = yield from self._improve(made, documents)
            radius = min(1.3 * radius, 1.5) if improved else 0.7 * radius

    def _losses_like(self, best: Factors, documents: int) -> dict[tuple[float, ...], float]:
        """Estimate the loss of all known rescale factors with the initial tokens and attention factor of the best.

        A loss that is known with other settings is corrected by the change in loss of the best candidate between the
        two settings. It is left out where that change is not known.
        """
        losses: dict[tuple[float, ...], tuple[bool, float]] = {}
        estimate = self._estimator(documents)
        for factors in self._known:
            before = Factors(best.rescale_factors, factors.initial_tokens, factors.attention_factor)
            change = estimate(best) - estimate(before) if before != best else 0.0
            loss = estimate(factors) + change
            if math.isfinite(loss):
                known = losses.get(factors.rescale_factors, (True, math.inf))
                losses[factors.rescale_factors] = min(known, (before != best, loss))
        return {shape: loss for shape, (_, loss) in losses.items()}

    def _search_curves(self) -> Phase:
        settings = self._settings
        smallest, radius, largest = settings.curve_radius
        least = self._profile_searches()[0].documents
        between = [count for count in rungs(self._documents) if count > least]
        plan = [(count, settings.curve_generations_on_fewer) for count in between] + [(self._documents, 0)]
        yield from self._promote(plan[0][0])
        base = self._best(plan[0][0])
        steps = Steps(self._space, base, settings.curve_knots)
        widths = np.full(len(steps.start), settings.curve_width)
        drawn: dict[tuple[float, ...], Vector] = {}
        for documents, generations in plan:
            yield from self._promote(documents)
            yield from self._evaluate([base], documents)
            done = without = 0
            while done < generations or (not generations and without < settings.patience):
                losses = self._losses_like(base, documents)
                known = [(drawn.get(shape, steps.vector(shape)), loss) for shape, loss in losses.items()]
                vectors = self._proposals(known, widths, steps.bounds, radius)
                made = [steps.factors(vector) for vector in vectors]
                drawn |= {factors.rescale_factors: vector for factors, vector in zip(made, vectors, strict=True)}
                improved = yield from self._improve(made, documents)
                radius = min(1.3 * radius, largest) if improved else max(0.8 * radius, smallest)
                done, without = done + 1, 0 if improved else without + 1

    def _sweep_initial_tokens(self, documents: int) -> Phase:
        choices = self._space.initial_tokens
        if not self._large:
            yield from self._sweep_choices(choices, documents)
            return
        first, *others = self._settings.initial_tokens_strides
        yield from self._sweep_choices(choices[::-first], documents)
        for stride in others:
            at = choices.index(self._best(documents).initial_tokens)
            beside = [choices[place] for place in (at - stride, at + stride) if 0 <= place < len(choices)]
            yield from self._sweep_choices(beside, documents)

    def _sweep_choices(self, initial_tokens: Sequence[int], documents: int) -> Phase:
        best = self._best(documents)
        others = [Factors(best.rescale_factors, count, best.attention_factor) for count in initial_tokens]
        yield from self._sweep([factors for factors in others if factors != best], documents)

    def _sweep_attention(self, documents: int) -> Phase:
        choices, best = self._space.attention_factors, self._best(documents)
        at = min(range(len(choices)), key=lambda index: abs(choices[index] - best.attention_factor))
        near = [at + step for step in (-8, -4, -2, -1, 1, 2, 4, 8) if 0 <= at + step < len(choices)]
        yield from self._sweep(
            [Factors(best.rescale_factors, best.initial_tokens, choices[i]) for i in near], documents
        )

    def _sweep_step(self, documents: int) -> Phase:
        best = self._best(documents)
        scaled = [scaled_before_step(self._space, best, share) for share in self._settings.before_step_shares]
        if self._large:
            scaled += sharpened(self._space, best)
        yield from self._sweep([factors for factors in scaled if factors != best], documents)
        yield from self._sweep_beside_step(documents)

    def _sweep_beside_step(self, documents: int) -> Phase:
        if self._large and self._space.pairs > 1:
            best = self._best(documents)
            moved = softened(self._space, best, self._settings.into_step_shares)
            yield from self._sweep([factors for factors in moved if factors != best], documents)

    def _sweep(self, others: list[Factors], documents: int) -> Phase:
        """Evaluate variants of the best candidate on few documents, and those that are not worse on more documents.

        One document would be too few: the gain is smaller than the ruggedness of the loss on a single document.
        """
        if not others:
            return
        best, few = self._best(documents), min(self._settings.sweep_documents, documents)
        yield from self._evaluate([best, *others], few)
        estimate = self._estimator(few)
        ahead = sorted((factors for factors in others if estimate(factors) <= estimate(best)), key=estimate)
        yield from self._evaluate([best, *ahead[:PROMOTED]], documents)

    def _polish(self) -> Phase:
        """Run rounds of CMA-ES, each around the best candidate so far."""
        fruitless, round_ = 0, 0
        while fruitless < self._settings.fruitless:
            found_new = yield from self._polish_once(round_)
            fruitless = 0 if found_new else fruitless + 1
            if round_ < self._settings.before_step_rounds:
                yield from self._sweep_step(self._documents)
            if round_ == 0:
                yield from self._sweep_initial_tokens(self._documents)
                yield from self._sweep_attention(self._documents)
            round_ += 1

    def _polish_once(self, round_: int) -> Generator[Generation, Sequence[Result], bool]:
        """Run CMA-ES until it converges or stops improving, and return whether any candidate was new."""
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
            losses = [*map(self._estimator(self._documents), (factors for _, factors in drawn))]
            worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0) + 1.0
            cma.tell([(vector, min(loss, worst)) for (vector, _), loss in zip(drawn, losses, strict=True)])
        return found_new
