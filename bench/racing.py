"""Whether races stop candidates that would have won: ``python -m bench.racing``.

The benchmark replays searches without races: a referee sees their candidates in the order proposed. Every candidate
was evaluated on all documents, so wrong stops are known. Then it runs evolution with and without races. Evaluations are
shared with :mod:`bench.search_efficiency` through the cache folder.
"""

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial

from bench.efficiency_runs import Plan, Run, predicted, run_plan, run_search, workplace
from bench.recipes import RECIPES
from bench.search_efficiency import in_processes
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.race import Race, rungs
from factor_search.measure.statistics import paired_difference
from factor_search.search.racing import Referee
from factor_search.spec import BudgetSpec, CmaSpec, EvolutionSpec, RacingSpec

ERROR_RATES = (0.05, 0.01, 0.001)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How races would have changed a search."""

    candidates: int = 0
    stopped: int = 0
    improvements: int = 0
    """Candidates better on all documents than their generation's rival, the best candidate that no race had stopped."""
    wrong: int = 0
    """Improvements that were stopped."""
    tokens: int = 0
    """Tokens evaluated without races."""
    tokens_raced: int = 0

    def __add__(self, other: "Replay") -> "Replay":
        return Replay(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The best of a search, with and without races."""

    loss: float
    """Loss on the search documents, in nats per token."""
    loss_raced: float


@dataclass(frozen=True, kw_only=True)
class ModelRaces:
    """All measurements on a model."""

    model: str
    replays: dict[tuple[str, float], tuple[Replay, Ends]]
    """By search and error rate."""
    pairs: tuple[tuple[Run, Run], ...]
    """Evolution without and with races, for each seed."""
    held_out_tokens: tuple[int, ...]
    full_evaluation: int


def replay(generations: Iterable[Sequence[Evaluation]], total: int, error_rate: float) -> tuple[Replay, Ends]:
    """Race the candidates of a search that ran without races, generation by generation."""
    referee, sum_of, best = Referee(total, error_rate), Replay(), math.inf
    for generation in generations:
        race, rival, continuing = referee.race(None), referee.best, []
        for evaluation in (one for one in generation if one.outcome == OK):
            count = stopped_after(evaluation, race, total)
            improves = rival is not None and evaluation.loss < rival.loss
            if count == total:
                continuing.append(evaluation)
            best = min(best, evaluation.loss)
            sum_of += Replay(
                candidates=1,
                stopped=count < total,
                improvements=improves,
                wrong=improves and count < total,
                tokens=sum(evaluation.tokens),
                tokens_raced=sum(evaluation.tokens[:count]),
            )
        for evaluation in continuing:
            referee.saw(evaluation)
    return sum_of, Ends(loss=best, loss_raced=referee.best.loss if referee.best else math.inf)


def stopped_after(evaluation: Evaluation, race: Race | None, total: int) -> int:
    """The number of documents after which a race stops a candidate; all if it does not."""
    if race is None:
        return total
    return next((count for count in rungs(total) if race.stops(evaluation.losses[:count], total)), total)


def highest_rate(wrong: int, of: int, confidence: float = 0.95) -> float:
    """One-sided upper limit of a binomial probability (Clopper and Pearson)."""
    if wrong >= of:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        at_most = math.fsum(math.exp(_log_chance(k, of, rate)) for k in range(wrong + 1))
        low, high = (rate, high) if at_most > 1 - confidence else (low, rate)
    return high


def _log_chance(k: int, of: int, rate: float) -> float:
    """The probability of exactly k successes, in logarithms because binomial coefficients overflow."""
    choose = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
    return choose + k * math.log(rate) + (of - k) * math.log1p(-rate)


def run_model(name: str, options: argparse.Namespace) -> ModelRaces:
    """Replays and pairs of one model, in its own process."""
    documents = (options.search_documents, options.validation_documents, options.held_out_documents)
    with workplace(name, *documents) as place:
        ample = BudgetSpec(candidates=None, tokens=options.cma_evaluations * place.full_evaluation)
        counted = BudgetSpec(candidates=options.evolution_candidates)
        searches = [
            Plan(name="evolution", strategy=EvolutionSpec(), seed=options.seeds[0], budget=counted, racing=False),
            Plan(name="cma", strategy=CmaSpec(), seed=options.seeds[0], budget=ample, racing=False),
        ]
        replays = {}
        for plan in searches:
            state, _ = run_search(plan, place)
            ends = [0, *state.generations]
            generations = [state.evaluations[start:end] for start, end in itertools.pairwise(ends)]
            for rate in ERROR_RATES:
                replays[plan.name, rate] = replay(generations, options.search_documents, rate)
            print(f"{name}: {plan.name} replayed, {len(state.evaluations):,} candidates", flush=True)
        pairs = []
        for seed in options.seeds:
            few = BudgetSpec(candidates=options.candidates)
            racing = RacingSpec(error_rate=options.error_rate)
            off, on = (
                run_plan(Plan(name="evolution", strategy=EvolutionSpec(), seed=seed, budget=few, racing=way), place)
                for way in (False, racing)
            )
            pairs.append((off, on))
            print(f"{name}: evolution run without and with races, seed {seed}", flush=True)
        return ModelRaces(
            model=name,
            replays=replays,
            pairs=tuple(pairs),
            held_out_tokens=predicted(place.samples.held_out),
            full_evaluation=place.full_evaluation,
        )


def replays_table(models: Sequence[ModelRaces]) -> str:
    """A row for each search and error rate, then one for each rate over all searches."""
    lines = [
        "| model | search | error rate | candidates | stopped | improvements | wrongly stopped | "
        "share (at most, 95 %) | tokens saved | best lost by, mnats |",
        "|" + " --- |" * 10,
    ]
    for rate in ERROR_RATES:
        total, most = Replay(), 0.0
        for one in models:
            for (search, of_rate), (counts, ends) in one.replays.items():
                if of_rate == rate:
                    lost = 1000 * (ends.loss_raced - ends.loss)
                    lines.append(_replay_row(one.model, search, rate, counts, lost))
                    total, most = total + counts, max(most, lost)
        lines.append(_replay_row("**all**", "(worst loss)", rate, total, most))
    return "\n".join(lines)


def _replay_row(model: str, search: str, rate: float, counts: Replay, lost: float) -> str:
    share = counts.wrong / counts.improvements if counts.improvements else math.nan
    return (
        f"| {model} | {search} | {rate:g} | {counts.candidates:,} | {counts.stopped:,} | {counts.improvements:,} | "
        f"{counts.wrong} | {share:.1%} ({highest_rate(counts.wrong, counts.improvements):.1%}) | "
        f"{1 - counts.tokens_raced / counts.tokens:.0%} | {lost:.2f} |"
    )


def pairs_table(models: Sequence[ModelRaces]) -> str:
    """A row for each seed: the result of evolution without and with races."""
    lines = [
        "| model | seed | full evaluations without | with | held-out perplexity without | with | "
        "with is worse by, mnats | standard errors |",
        "|" + " --- |" * 8,
    ]
    for one in models:
        for off, on in one.pairs:
            worse, error = paired_difference(on.final.held_out_losses, off.final.held_out_losses, one.held_out_tokens)
            lines.append(
                f"| {one.model} | {off.seed} | {off.tokens / one.full_evaluation:,.1f} | "
                f"{on.tokens / one.full_evaluation:,.1f} | {off.final.perplexity:.4f} | {on.final.perplexity:.4f} | "
                f"{1000 * worse:+.2f} ± {1000 * error:.2f} | {worse / error if error else 0.0:+.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judges = [name for name, recipe in RECIPES.items() if recipe.role == "judge"]
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=judges)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of evolution with and without races")
    parser.add_argument("--candidates", type=int, default=200, help="of evolution with and without races")
    parser.add_argument("--error-rate", type=float, default=0.01, help="of evolution with races")
    parser.add_argument("--evolution-candidates", type=int, default=1344, help="of the replayed evolution")
    parser.add_argument("--cma-evaluations", type=int, default=2000, help="full evaluations of the replayed cma")
    parser.add_argument("--search-documents", type=int, default=8)
    parser.add_argument("--validation-documents", type=int, default=4)
    parser.add_argument("--held-out-documents", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    options = parser.parse_args()
    models: list[ModelRaces] = in_processes(options.models, options.jobs, partial(run_model, options=options))
    print("\n# Races\n\n## Searches without races, replayed\n")
    print(
        "An improvement is a candidate better on all search documents than the rival that its generation raced "
        "against. The rate is stated for each of them; one stopped may be made up for by a later one.\n"
    )
    print(replays_table(models))
    print(
        f"\n## Evolution, {options.candidates} candidates, without and with races (error rate {options.error_rate})\n"
    )
    print(pairs_table(models))


if __name__ == "__main__":
    main()
