"""Which earlier results each stage of a plan uses: names given, references filled in, and impossible ones refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from factor_search.plan.stages import (
    ORIGINAL,
    AwaitStage,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    SearchStage,
    Stage,
)

ROLES: dict[str, tuple[type[Any], ...]] = {
    "model": (FinetuneStage, AwaitStage),
    "factors": (SearchStage,),
    "start_from": (SearchStage,),
    "short": (ReadjustStage,),
}
"""The fields that name earlier stages, and of which kinds."""
FILES = ("plan.json", "report.json", "report.html", "factors.json", "short_factors.json")
"""What a plan itself leaves beside the folders of its stages."""
WITHOUT_SEARCH = {
    "finetune": "nothing to fine-tune with",
    "await_checkpoint": "nothing to tune a checkpoint with",
    "readjust": "nothing to readjust",
    "evaluate": "nothing to evaluate",
    "export": "nothing to export",
}
Before = Mapping[str, Stage]


def resolved(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages, each with a name and with every reference that has a meaning given.

    Raises:
        ValueError: a name is taken twice; a reference is to nothing, to itself, to a later stage or to one of another
            kind; a stage has nothing to work on; or lengths do not grow. Says which and why.
    """
    named = _named(stages)
    positions = {str(stage.name): number for number, stage in enumerate(named)}
    before: dict[str, Stage] = {}
    for stage in named:
        for role in ROLES:
            if (target := getattr(stage, role, None)) is not None:
                _check_reference(stage, role, target, named, positions)
        complete = _completed(stage, before)
        _check_lengths(complete, before)
        _check_initial_tokens(complete, before)
        before[str(stage.name)] = complete
    return list(before.values())


def lineage(model: str, before: Before) -> list[str]:
    """A model's name, that of the one it was made from, ... and the plan's own."""
    names = [model]
    while names[-1] != ORIGINAL:
        made_by = before[names[-1]]
        assert isinstance(made_by, FinetuneStage | AwaitStage)
        names.append(str(made_by.model))
    return names


def search_of(stage: Stage, before: Before) -> SearchStage:
    """The search whose factors a complete stage uses."""
    assert not isinstance(stage, SearchStage)
    search = before[str(stage.factors)]
    assert isinstance(search, SearchStage)
    return search


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
    if not isinstance(found, ROLES[role]):
        kinds = " or ".join(kind.model_fields["kind"].default for kind in ROLES[role])
        raise ValueError(f"{stage.name}: {role} is {target}, a stage of kind {found.kind}, but must be a {kinds}")
    if positions[target] >= positions[str(stage.name)]:
        way = _way(target, str(stage.name), stages, positions)
        if way:
            raise ValueError(f"the stages need each other in a cycle: {' -> '.join([str(stage.name), *way])}")
        raise ValueError(f"{stage.name}: {role} is {target}, which comes later: a stage uses results of earlier ones")


def _way(start: str, goal: str, stages: Sequence[Stage], positions: Mapping[str, int]) -> list[str] | None:
    """From one stage to another by what each needs, given or by default; None if there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == goal:
            return way
        stage = stages[positions[way[-1]]]
        for role, kinds in ROLES.items():
            if role not in type(stage).model_fields:
                continue
            earlier = [str(one.name) for one in stages[: positions[way[-1]]] if isinstance(one, kinds)]
            needed: str | None = getattr(stage, role) or (earlier[-1] if earlier else None)
            if needed is not None and needed in positions and needed not in seen:
                seen.add(needed)
                ways.append([*way, needed])
    return None


def _completed(stage: Stage, before: Before) -> Stage:
    """The stage with every reference filled in that has a meaning."""
    checkpoints = [name for name, one in before.items() if isinstance(one, ROLES["model"])]
    model = stage.model or (checkpoints[-1] if checkpoints else ORIGINAL)
    found = _last_search(model, before)
    if isinstance(stage, SearchStage):
        return stage.model_copy(update={"model": model, "start_from": stage.start_from or found})
    factors = stage.factors or found
    if factors is None:
        raise ValueError(f"{stage.name}: {WITHOUT_SEARCH[stage.kind]}, since no search comes before it")
    if isinstance(stage, ReadjustStage) and model == ORIGINAL:
        raise ValueError(
            f"{stage.name}: nothing to readjust, since no stage before it makes a checkpoint: the model as it was "
            "reads short texts best with its own RoPE"
        )
    update: dict[str, str | None] = {"model": model, "factors": factors}
    if isinstance(stage, EvaluateStage | ExportStage):
        update["short"] = _short(stage, model, factors, before)
    return stage.model_copy(update=update)


def _last_search(model: str, before: Before) -> str | None:
    """The last search on a model, or else on the one it was made from, ..."""
    for one in lineage(model, before):
        on_it = [name for name, stage in before.items() if isinstance(stage, SearchStage) and stage.model == one]
        if on_it:
            return on_it[-1]
    return None


def _short(stage: EvaluateStage | ExportStage, model: str, factors: str, before: Before) -> str | None:
    """The readjusting that belongs to the factors a stage uses."""
    if isinstance(stage, ExportStage) and stage.profile == "static":
        if stage.short is not None:
            raise ValueError(f"{stage.name}: short belongs to the profile 'switching'; 'static' has long factors only")
        return None
    readjusted = {name: one for name, one in before.items() if isinstance(one, ReadjustStage)}
    fitting = [name for name, one in readjusted.items() if (one.model, one.factors) == (model, factors)]
    if stage.short is not None and stage.short not in fitting:
        other = readjusted[stage.short]
        raise ValueError(
            f"{stage.name}: {other.name} readjusts {other.factors} on {other.model}, not {factors} on {model}"
        )
    chosen = stage.short or (fitting[-1] if fitting else None)
    if isinstance(stage, ExportStage):
        if chosen is None:
            raise ValueError(
                f"{stage.name}: nothing to switch to, since no stage before it readjusts {factors} on {model}"
            )
        if readjusted[chosen].attention_factor != "long":
            raise ValueError(
                f"{stage.name}: {chosen} has an attention factor of its own, but a configuration has one for both: set "
                "its attention_factor to 'long'"
            )
    return chosen


def _check_lengths(stage: Stage, before: Before) -> None:
    if isinstance(stage, SearchStage) and stage.start_from is not None:
        start = before[stage.start_from]
        assert isinstance(start, SearchStage)
        if stage.target_length <= start.target_length:
            raise ValueError(
                f"lengths must grow: {stage.name} is for {stage.target_length} tokens and starts from {start.name}, "
                f"which is for {start.target_length}"
            )
    elif isinstance(stage, FinetuneStage):
        target, settings = search_of(stage, before).target_length, stage.settings
        if settings.train_length is not None and settings.train_length > target:
            raise ValueError(
                f"{stage.name}: train_length is {settings.train_length} tokens, beyond the {target} that "
                f"{stage.factors} is for"
            )
    elif isinstance(stage, EvaluateStage):
        target = search_of(stage, before).target_length
        asked = [*(stage.lengths or ()), *((stage.passkey and stage.passkey.lengths) or ())]
        if asked and max(asked) > target:
            raise ValueError(
                f"{stage.name}: a length of {max(asked)} tokens is beyond the {target} that {stage.factors} is for"
            )


def _check_initial_tokens(stage: Stage, before: Before) -> None:
    """Refuse at once what would only be found after hours of search."""
    writes = isinstance(stage, ExportStage | AwaitStage) or (
        isinstance(stage, FinetuneStage) and not stage.settings.drop_initial_tokens
    )
    if writes and search_of(stage, before).space.initial_tokens != [0]:
        raise ValueError(
            f"{stage.name}: {search_of(stage, before).name} may find initial tokens, which no configuration can "
            "express: set its space.initial_tokens to [0]"
            + (", or drop_initial_tokens to true" if isinstance(stage, FinetuneStage) else "")
        )
