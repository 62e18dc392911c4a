"""What each strategy finds for its tokens on small trained models: ``python -m bench.search_efficiency``.

All strategies search on the same documents. Their recommendations are measured on documents that no search used. Costs
are tokens evaluated in the search. Evaluations are kept in the cache folder, so a killed run continues where it
stopped, and a second run costs nothing.
"""

import argparse
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.efficiency_metrics import attainable, best_closed_form, figures
from bench.efficiency_plot import draw
from bench.efficiency_runs import CONTROL, CONTROL_2, ModelRuns, Plan, run_plans, settings_of, workplace
from bench.efficiency_tables import bars, bars_table, model_table
from bench.fresh import SCALES, first_looked_at, names, recipe_of
from bench.models import bench_model
from bench.recipes import RECIPES
from factor_search.methods import OWN
from factor_search.model.allocator import keep_freed_memory
from factor_search.search.problem import FORMS
from factor_search.spec import (
    AutoSpec,
    BudgetSpec,
    CmaSpec,
    EvolutionSpec,
    Nsga2Spec,
    RandomSpec,
    StrategySpec,
    TpeSpec,
)

PUBLISHED = "auto-published"
"""``auto`` without the closed form that was fitted to models like these."""
SPECS: dict[str, StrategySpec | None] = {
    CONTROL: None,
    CONTROL_2: None,
    "evolution": EvolutionSpec(),
    "cma": CmaSpec(),
    "tpe": TpeSpec(),
    "nsga2": Nsga2Spec(),
    "random": RandomSpec(),
    "auto": AutoSpec(),
    PUBLISHED: AutoSpec(),
}
"""Every strategy with its default settings."""
ROLES = {"develop": "used to design the strategies", "judge": "used only to judge them"}


def plans(options: argparse.Namespace, full_evaluation: int) -> list[Plan]:
    """The searches on one model; those that others are compared with come first."""
    counted = BudgetSpec(candidates=options.control_candidates)
    equal = BudgetSpec(candidates=None, tokens=options.budget * full_evaluation)
    ample = BudgetSpec(candidates=None, tokens=options.attainable_evaluations * full_evaluation)
    seeds, one_seed = options.seeds, options.seeds[:1]
    control_seeds = options.control_seeds or one_seed
    rows: list[tuple[str, str, list[int], BudgetSpec]] = [
        (CONTROL, CONTROL, control_seeds, counted),
        (CONTROL_2, CONTROL_2, control_seeds, counted),
        ("evolution", "evolution", control_seeds, counted),
        ("auto", "auto", seeds, BudgetSpec()),
        (PUBLISHED, PUBLISHED, seeds, BudgetSpec()),
        ("auto", f"auto, {options.attainable_evaluations:,}", one_seed, ample),
        ("cma", "cma", one_seed, ample),
        *((kind, kind, seeds, equal) for kind in ("tpe", "nsga2", "random")),
    ]
    forms = {PUBLISHED: tuple(form for form in FORMS if form not in OWN)}
    return [
        Plan(name=name, strategy=SPECS[kind], seed=seed, budget=budget, forms=forms.get(kind, FORMS))
        for kind, name, kind_seeds, budget in rows
        if kind in options.strategies
        for seed in kind_seeds
    ]


def run_model(name: str, options: argparse.Namespace) -> ModelRuns:
    """All searches on one model, in its own process."""
    documents = (options.search_documents, options.validation_documents, options.held_out_documents)
    with workplace(name, *documents) as place:
        return run_plans(name, recipe_of(name).role, plans(options, place.full_evaluation), place)


def in_processes(names: list[str], jobs: int, work: Callable[[str], Any]) -> list[Any]:
    """Do the work on each model, ``jobs`` at a time with one thread each; missing models are trained first."""
    for name in names:
        bench_model(name)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_prepare) as pool:
        return list(pool.map(work, names))


def _prepare() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed benchmark would otherwise leave this process, which holds the ledger."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def write(models: list[ModelRuns], options: argparse.Namespace, out: Path) -> None:
    """Write ``results.json`` and a plot for each model."""
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "bars": [asdict(bar) for bar in bars(models)],
        "models": [
            {
                **asdict(runs),
                "best_closed_form": best_closed_form(runs),
                "attainable": {"name": attainable(runs).name, "seed": attainable(runs).seed},
                "figures": [
                    {
                        "name": run.name,
                        "seed": run.seed,
                        **{k: v for k, v in asdict(figures(run, runs)).items() if k != "run"},
                    }
                    for run in runs.runs
                ],
            }
            for runs in models
        ],
    }
    (out / "results.json").write_text(json.dumps(_finite(results), indent=1), encoding="utf-8")
    for runs in models:
        draw(runs, out / f"{runs.model}.png")
    print(f"\nWritten: {out / 'results.json'} and a plot for each model")


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judges = [name for name, recipe in RECIPES.items() if recipe.role == "judge"]
    fresh_help = "judges of a seed that nobody has used: they are trained, and the record says that they were looked at"
    parser.add_argument("--models", nargs="*", metavar="NAME", help=f"default: {', '.join(judges)}, or the fresh ones")
    parser.add_argument("--fresh", type=int, metavar="SEED", help=fresh_help)
    parser.add_argument("--scales", nargs="+", type=int, choices=SCALES, default=[16, 32, 64], help="of fresh judges")
    parser.add_argument("--strategies", nargs="+", choices=SPECS, default=[name for name in SPECS if name != PUBLISHED])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--control-seeds", nargs="+", type=int, help="of the controls and of evolution (default: the first seed)"
    )
    parser.add_argument("--control-candidates", type=int, default=1344, help="of the controls and of evolution")
    parser.add_argument("--budget", type=int, default=300, help="full evaluations of tpe, nsga2 and random")
    parser.add_argument("--attainable-evaluations", type=int, default=2000, help="full evaluations of cma and auto")
    parser.add_argument("--search-documents", type=int, default=8)
    parser.add_argument("--validation-documents", type=int, default=4)
    parser.add_argument("--held-out-documents", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, each with one process and one thread")
    parser.add_argument("--out", type=Path, default=Path("bench/results/search_efficiency"))
    options = parser.parse_args()
    fresh = [] if options.fresh is None else names(options.fresh, tuple(options.scales))
    options.models = [*(options.models or ()), *fresh] or judges
    return options


def main() -> None:
    options = parse()
    looked_at = {name: first_looked_at(name) for name in options.models if recipe_of(name).role == "judge"}
    models: list[ModelRuns] = in_processes(options.models, options.jobs, partial(run_model, options=options))
    write(models, options, options.out)
    print("\n# Search efficiency\n")
    for role, text in ROLES.items():
        known = [name for name, recipe in RECIPES.items() if recipe.role == role]
        used = [name for name in options.models if recipe_of(name).role == role]
        print(f"Models {text}: {', '.join(known)}; in this run: {', '.join(used) or 'none'}.")
    for name, seen in looked_at.items():
        print(f"{name}: {seen}.")
    settings = settings_of("auto", SPECS["auto"])
    print(f"Every strategy has its default settings, the same for every model; auto: `{settings}`.\n")
    for runs in models:
        print(model_table(runs), end="\n\n")
    if rows := bars(models):
        print(bars_table(rows))


if __name__ == "__main__":
    main()
