"""A job or plan from a file, from flags, or from both; what flags say overrides the file."""

import argparse
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.cli.arguments import add_remote_code_argument
from factor_search.errors import SpecError
from factor_search.files.json_documents import read_json
from factor_search.plan.spec import PlanSpec, is_plan, parse_plan
from factor_search.spec import JobSpec, parse_spec

SHORT_FORMS = {"model": "id", "data": "files", "objective": "kind", "strategy": "kind", "budget": "candidates"}
"""Fields that may be one value instead of an object, each with the key of the object that the value stands for."""


@dataclass(frozen=True)
class Change:
    """A value that the command line puts into a specification."""

    path: tuple[str, ...]
    """Keys and list positions from the top."""
    value: Any
    flag: str
    """As given, for messages."""


def add_specification_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that describes a job or plan."""
    parser.add_argument(
        "spec", nargs="?", type=Path, metavar="SPEC.json", help="a job or plan; the flags below override what it says"
    )
    group = parser.add_argument_group("specification")
    group.add_argument("--model", metavar="M", help="local checkpoint folder, or hub id")
    group.add_argument("--data", nargs="+", metavar="D", help="documents: files, globs or saved data sets")
    group.add_argument("--target-length", type=int, metavar="L", help="context length wanted, in tokens")
    group.add_argument("--strategy", metavar="S", help="search strategy: auto, evolution, cma, tpe, nsga2 or random")
    group.add_argument("--candidates", type=int, metavar="N", help="budget of the search")
    group.add_argument("--seed", type=int, metavar="N", help="seed of the search and of the choice of documents")
    group.add_argument("--name", help="name of the job or plan")
    add_remote_code_argument(group)
    group.add_argument("--recipe", metavar="R", help="make it a plan with these stages: longrope or longrope2")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="set any field, as in space.initial_tokens=[0], stages.0.budget=50 or data.split=test; VALUE is JSON, "
        "otherwise text",
    )
    group.add_argument(
        "--print-spec",
        action="store_true",
        help="print the resulting specification as JSON, without fields that keep their default, and exit",
    )


def specification(arguments: argparse.Namespace) -> JobSpec | PlanSpec:
    """The validated job or plan that the arguments of :func:`add_specification_arguments` describe.

    Raises:
        SpecError: naming every offending key, and the flag that set it.
    """
    document = {} if arguments.spec is None else read_json(arguments.spec, SpecError)
    changes = list(_changes(arguments))
    if arguments.spec is None:
        _check_enough(arguments, {change.path[0] for change in changes})
    if isinstance(document, dict):
        for change in changes:
            _apply(document, change)
    plan = is_plan(document)
    if plan:
        _check_plan_flags(arguments)
    try:
        return parse_plan(document) if plan else parse_spec(document)
    except SpecError as error:
        raise SpecError(_explained(str(error), changes, PlanSpec if plan else JobSpec)) from None


def print_specification(spec: JobSpec | PlanSpec) -> None:
    """Print a specification so that it can be kept as a file; fields that keep their default are left out."""
    print(json.dumps(spec.model_dump(mode="json", exclude_unset=True), indent=2, ensure_ascii=False))


def _assignment(text: str) -> Change:
    key, equals, value = text.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as in space.initial_tokens=[0]")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    return Change(path, parsed, f"--set {text}")


def _changes(arguments: argparse.Namespace) -> Iterator[Change]:
    """What the flags change, in the order in which they are applied: ``--set`` has the last word."""
    paths = {
        "model": ("model", "id"),
        "data": ("data", "files"),
        "target_length": ("target_length",),
        "strategy": ("strategy",),
        "candidates": ("budget", "candidates"),
        "seed": ("seed",),
        "name": ("name",),
        "trust_remote_code": ("model", "trust_remote_code"),
        "recipe": ("recipe",),
    }
    for name, path in paths.items():
        value = getattr(arguments, name)
        if value is not None:
            yield Change(path, value, f"--{name.replace('_', '-')}")
    yield from arguments.set


def _check_enough(arguments: argparse.Namespace, given: set[str]) -> None:
    """End with a usage error if there is no file and the flags leave out what every specification needs."""
    needed = ["model", "data"] if "stages" in given else ["model", "data", "target_length"]
    missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
    if missing:
        arguments.usage_error(f"{', '.join(missing)} missing: give SPEC.json, or --model, --data and --target-length")


def _check_plan_flags(arguments: argparse.Namespace) -> None:
    for name in ("strategy", "candidates"):
        if getattr(arguments, name) is not None:
            field = {"strategy": "strategy", "candidates": "budget.candidates"}[name]
            raise SpecError(
                f"--{name} is for a single search, and this is a plan: list its stages and give "
                f"--set stages.0.{field}=..."
            )


def _apply(document: dict[str, Any], change: Change) -> None:
    """Put a value at its path; objects and lists on the way are made where there are none.

    Raises:
        SpecError: the path leads through something that is neither an object nor a list, or beyond the end of a list.
    """
    if change.path == ("data", "files") and isinstance(document.get("data"), dict):
        document["data"] = {key: value for key, value in document["data"].items() if key not in ("dataset", "name")}
    holder: Any = document
    for key, following in zip(change.path, change.path[1:], strict=False):
        child = _child(holder, key, change)
        if child is None:
            child = [] if following.isdigit() else {}
        elif key in SHORT_FORMS and not isinstance(child, dict) and not following.isdigit():
            child = {SHORT_FORMS[key]: [child] if key == "data" and isinstance(child, str) else child}
        elif not isinstance(child, dict | list):
            raise SpecError(f"{change.flag}: {key} is {json.dumps(child)}, which has no {following}")
        _put(holder, key, child, change)
        holder = child
    _put(holder, change.path[-1], change.value, change)


def _child(holder: Any, key: str, change: Change) -> Any:
    if isinstance(holder, dict):
        return holder.get(key)
    position = _position(holder, key, change)
    return holder[position] if position < len(holder) else None


def _put(holder: Any, key: str, value: Any, change: Change) -> None:
    if isinstance(holder, dict):
        holder[key] = value
        return
    position = _position(holder, key, change)
    holder[position : position + 1] = [value]


def _position(items: list[Any], key: str, change: Change) -> int:
    if not key.isdigit() or int(key) > len(items):
        raise SpecError(f"{change.flag}: {key} is not a position in this list, which has {len(items)} entries from 0")
    return int(key)


def _explained(message: str, changes: list[Change], model: type[JobSpec] | type[PlanSpec]) -> str:
    """The message with the flags that its complaints are about, and the names that unknown keys may stand for."""
    heading, _, rest = message.partition(": ")
    complaints = []
    for complaint in rest.split("; "):
        place = complaint.partition(":")[0].split(".")
        hints = [change.flag for change in changes if _leads_to(change.path, place)][:1]
        if complaint.endswith("unknown key"):
            close = difflib.get_close_matches(place[-1], _keys(model.model_json_schema()), n=1)
            hints += [f"did you mean {key}?" for key in close]
        complaints.append(f"{complaint} ({', '.join(hints)})" if hints else complaint)
    return f"{heading}: {'; '.join(complaints)}"


def _leads_to(path: tuple[str, ...], place: list[str]) -> bool:
    """Whether a complaint is about a path or what it leads through; in places the kind of a union may come between."""
    rest = iter(place)
    return all(key in rest for key in path) or list(path[: len(place)]) == place


def _keys(schema: dict[str, Any]) -> set[str]:
    models = [schema, *schema.get("$defs", {}).values()]
    return {key for one in models for key in one.get("properties", ())}
