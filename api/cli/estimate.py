"""``factor-search estimate``: tokens, time and memory of a job or plan before it starts; no weights are read."""

import argparse
import json
from typing import Any

from api.cli.arguments import add_json_argument
from api.cli.specification import add_specification_arguments, print_specification, specification
from factor_search.plan.spec import PlanSpec
from factor_search.search.estimate_text import duration, size_text, summary
from factor_search.spec import JobSpec


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_specification_arguments(parser)
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="how many evaluate at the same time (default: 1)"
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)
    parser.epilog = (
        "Documents and the model's configuration are read, but no weights. The speed of this machine is measured for "
        "some seconds with random numbers in their place, and kept in the cache. What cannot be known is left out, "
        "with the reason."
    )


def run(arguments: argparse.Namespace) -> int:
    """Estimate, and print."""
    spec = specification(arguments)
    if arguments.print_spec:
        print_specification(spec)
        return 0
    if arguments.workers < 1:
        arguments.usage_error("--workers must be 1 or more")
    estimate = estimated(spec, workers=arguments.workers)
    print(json.dumps(estimate) if arguments.json else "\n".join(lines(estimate)))
    return 0


def estimated(spec: JobSpec | PlanSpec, workers: int = 1) -> dict[str, Any]:
    """The estimate for this machine.

    Raises:
        FactorSearchError: the model's configuration cannot be read, or the specification does not fit it.
    """
    from factor_search.job import estimate_job
    from factor_search.model.memory import available_bytes
    from factor_search.model.speed import device_of
    from factor_search.plan.estimate import estimate_plan

    available = available_bytes(str(device_of(spec.model)))
    if isinstance(spec, PlanSpec):
        return estimate_plan(spec, available=available, workers=workers)
    return estimate_job(spec, available=available, workers=workers)


def lines(estimate: dict[str, Any]) -> list[str]:
    """An estimate for a terminal."""
    shown = [summary(estimate).removeprefix("estimate: ")]
    rows = [(stage["name"], stage) for stage in estimate.get("stages", ())] or [("", estimate)]
    shown += [line for name, one in rows for line in _lines_of(name, one)]
    documents = estimate["documents"]
    if documents is not None:
        counts = ", ".join(f"{len(found)} {part.replace('_', '-')}" for part, found in documents.items())
        shown.append(f"documents: {counts}")
    if estimate["fits"] is False:
        shown.append(f"it does not fit; {estimate['too_large']}")
    return [*shown, *(f"note: {note}" for note in estimate["notes"])]


def _lines_of(name: str, one: dict[str, Any]) -> list[str]:
    """A line for each part of a job or stage that costs something."""
    shown = []
    for part in ("search", "validation", "held_out", "training", "loading"):
        cost = one.get(part)
        if cost is None or cost["seconds"] is None:
            continue
        counts = ""
        if part == "search":
            counts = f"{cost['candidates']} candidates as {cost['full_evaluations']} full evaluations, "
        elif part == "training":
            counts = f"{cost['steps']} steps, "
        if "tokens" in cost:
            counts += f"{cost['tokens']:,} tokens, "
        title = f"{name} {part.replace('_', '-')}".strip()
        shown.append(f"{title:28}{counts}{duration(cost['seconds'])}")
    memory = one["memory"]
    if memory is not None and memory["peak"] is not None:
        parts = ", ".join(f"{key} {size_text(memory[key])}" for key in ("weights", "activations"))
        shown.append(f"{f'{name} memory'.strip():28}{size_text(memory['peak'])} at most: {parts}")
    return shown
