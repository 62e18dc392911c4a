"""Resolves which earlier results each stage of a plan uses, and refuses references that cannot be resolved."""

from collections import Counter
from collections.abc import Mapping, Sequence

from factor_search.plan.kinds import ROLES, kind_of
from factor_search.plan.kinds.contract import ORIGINAL, Stage
from factor_search.plan.kinds.search import last_search

FILES = ("plan.json", "report.json", "report.html", "factors.json", "short_factors.json")
"""Files of the plan beside the folders of its stages."""
Before = Mapping[str, Stage]


def resolved(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages, each with a name and all references filled in.

    Raises:
        ValueError: a name is taken twice; a reference names no stage, the stage itself, a later one or one of another
            kind; a stage has nothing to work on; or lengths do not grow. The message says which and why.
    """
    named = _named(stages)
    positions = {str(stage.name): number for number, stage in enumerate(named)}
    before: dict[str, Stage] = {}
    for stage in named:
        for role in ROLES:
            if (target := getattr(stage, role, None)) is not None:
                _check_reference(stage, role, target, named, positions)
        complete = _completed(stage, before)
        kind_of(complete).check(complete, before)
        before[str(stage.name)] = complete
    return list(before.values())


def _named(stages: Sequence[Stage]) -> list[Stage]:
    counts: Counter[str] = Counter()
    named = []
    for stage in stages:
        counts[stage.kind] += 1
        named.append(stage.model_copy(update={"name": stage.name or f"{stage.kind}-{counts[stage.kind]}"}))
    names = Counter(stage.name for stage in named)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{twice[0]} is the name of {names[twice[0]]} stages: give each its own")
    if ORIGINAL in names:
        raise ValueError(f"no stage can be named {ORIGINAL!r}: that means the plan's model")
    if taken := [name for name in FILES if name in names]:
        raise ValueError(f"no stage can be named {taken[0]!r}: that is a file beside the folders of the stages")
    return named


def _check_reference(
    stage: Stage, role: str, target: str, stages: Sequence[Stage], positions: Mapping[str, int]
) -> None:
    if role == "model" and target == ORIGINAL:
        return
    if target not in positions:
        raise ValueError(f"{stage.name}: {role} is {target!r}, but no stage has that name")
    found = stages[positions[target]]
    if found.kind not in ROLES[role]:
        kinds = " or ".join(ROLES[role])
        raise ValueError(f"{stage.name}: {role} is {target}, a stage of kind {found.kind}, but must be a {kinds}")
    if positions[target] >= positions[str(stage.name)]:
        way = _way(target, str(stage.name), stages, positions)
        if way:
            raise ValueError(f"the stages need each other in a cycle: {' -> '.join([str(stage.name), *way])}")
        raise ValueError(f"{stage.name}: {role} is {target}, which comes later: a stage uses results of earlier ones")


def _way(start: str, goal: str, stages: Sequence[Stage], positions: Mapping[str, int]) -> list[str] | None:
    """The path from one stage to another along what each needs, given or by default; None if there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == goal:
            return way
        stage = stages[positions[way[-1]]]
        for role, kinds in ROLES.items():
            if role not in type(stage).model_fields:
                continue
            earlier = [str(one.name) for one in stages[: positions[way[-1]]] if one.kind in kinds]
            needed: str | None = getattr(stage, role) or (earlier[-1] if earlier else None)
            if needed is not None and needed in positions and needed not in seen:
                seen.add(needed)
                ways.append([*way, needed])
    return None


def _completed(stage: Stage, before: Before) -> Stage:
    """The stage with all references filled in."""
    checkpoints = [name for name, one in before.items() if one.kind in ROLES["model"]]
    update: dict[str, str] = {"model": stage.model or (checkpoints[-1] if checkpoints else ORIGINAL)}
    if stage.needs_search is not None:
        factors = getattr(stage, "factors", None) or last_search(update["model"], before)
        if factors is None:
            raise ValueError(f"{stage.name}: {stage.needs_search}, since no search comes before it")
        update["factors"] = factors
    complete: Stage = kind_of(stage).complete(stage.model_copy(update=update), before)
    return complete
