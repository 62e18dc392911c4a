import json
from typing import Any

import pytest

from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, MeasuredPerplexity, factors_file
from factor_search.files.canonical_json import sha256_of
from factor_search.plan.kinds.contract import Outcome
from factor_search.plan.kinds.readjust import ReadjustWork
from factor_search.plan.kinds.search import SearchStage, SearchWork
from factor_search.plan.spec import is_plan, parse_plan, read_plan
from factor_search.plan.work import parse_outcome, parse_work, work_of
from factor_search.spec import JobSpec, ModelSpec, parse_spec

ONE_LINE = {"model": "M", "data": "books/*.txt", "target_length": 8192, "recipe": "longrope"}


def search(target_length: int = 1024, **more: Any) -> dict[str, Any]:
    return {"kind": "search", "target_length": target_length} | more


FINETUNE, READJUST, EVALUATE, EXPORT = ({"kind": kind} for kind in ("finetune", "readjust", "evaluate", "export"))
AWAIT = {"kind": "await_checkpoint"}


def plan(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "M", "data": "books/*.txt", "stages": list(stages)} | more


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a cycle": (
        plan(search(model="tuned"), FINETUNE | {"name": "tuned", "factors": "search-1"}),
        "the stages need each other in a cycle: search-1 -> tuned -> search-1",
    ),
    "a cycle by default": (
        plan(search(model="finetune-1"), FINETUNE),
        "in a cycle: search-1 -> finetune-1 -> search-1",
    ),
    "a stage that needs itself": (plan(search(start_from="search-1")), "in a cycle: search-1 -> search-1"),
    "a later stage": (
        plan(search(), EVALUATE | {"factors": "b"}, search(2048, name="b")),
        "evaluate-1: factors is b, which comes later",
    ),
    "an unknown stage": (plan(search(), EVALUATE | {"factors": "b"}), "factors is 'b', but no stage has that name"),
    "a stage of another kind": (
        plan(search(), FINETUNE | {"model": "search-1"}),
        "model is search-1, a stage of kind search, but must be a finetune or await_checkpoint",
    ),
    "nothing to readjust": (plan(READJUST), "readjust-1: nothing to readjust, since no search comes before it"),
    "readjusting the model as it was": (
        plan(search(), READJUST),
        "nothing to readjust, since no stage before it makes",
    ),
    "nothing to fine-tune": (plan(FINETUNE, search()), "nothing to fine-tune with"),
    "nothing to await": (plan(AWAIT), "nothing to tune a checkpoint with"),
    "nothing to evaluate": (plan(EVALUATE), "nothing to evaluate"),
    "nothing to export": (plan(EXPORT), "nothing to export"),
    "lengths that do not grow": (
        plan(search(2048), FINETUNE, search(2048)),
        "lengths must grow: search-2 is for 2048 tokens and starts from search-1, which is for 2048",
    ),
    "a length below the original": (
        plan(search(2048), model={"id": "M", "original_length": 4096}),
        "not above the original length of 4096",
    ),
    "a middle beyond the target": (ONE_LINE | {"middle_length": 9000}, "lengths must grow: search-2 is for 8192"),
    "a training beyond its factors": (
        plan(search(), FINETUNE | {"settings": {"train_length": 2048}}),
        "train_length is 2048 tokens, beyond the 1024 that search-1 is for",
    ),
    "an evaluation beyond its factors": (
        plan(search(), EVALUATE | {"lengths": [512, 4096]}),
        "4096 tokens is beyond the",
    ),
    "passkeys beyond their factors": (
        plan(search(), EVALUATE | {"passkey": {"lengths": [4096]}}),
        "evaluate-1: a length of 4096 tokens is beyond the 1024",
    ),
    "a name twice": (plan(search(name="a"), search(2048, name="a")), "a is the name of 2 stages"),
    "a default name taken": (plan(search(name="search-2"), search(2048)), "search-2 is the name of 2 stages"),
    "the plan's model as a name": (plan(search(name="original")), "no stage can be named 'original'"),
    "a file of the plan as a name": (plan(search(name="report.json")), "no stage can be named 'report.json'"),
    "a name that is a path": (plan(search(name="../x")), r"name: String should match pattern"),
    "too many stages": (plan(*[search(1000 + n) for n in range(33)]), "at most 32 items"),
    "no stage": (plan(), "at least 1 item"),
    "initial tokens trained": (
        plan(search(space={"initial_tokens": [0, 4]}), FINETUNE),
        "search-1 may find initial tokens, which no configuration can express",
    ),
    "initial tokens exported": (plan(search(space={"initial_tokens": [4]}), EXPORT), "may find initial tokens"),
    "nothing to switch to": (plan(search(), FINETUNE, EXPORT | {"profile": "switching"}), "nothing to switch to"),
    "a pair that is none": (
        plan(search(), FINETUNE, READJUST, search(2048), EXPORT | {"profile": "switching", "short": "readjust-1"}),
        "readjust-1 readjusts search-1 on finetune-1, not search-2 on finetune-1",
    ),
    "a pair with two attention factors": (
        plan(search(), FINETUNE, READJUST | {"attention_factor": "search"}, EXPORT | {"profile": "switching"}),
        "export-1: readjust-1 has an attention factor of its own, but a configuration has one for both",
    ),
    "short factors of a static export": (
        plan(search(), FINETUNE, READJUST, EXPORT | {"short": "readjust-1"}),
        "short belongs to the profile 'switching'",
    ),
    "a recipe without a target": ({"model": "M", "data": "x", "recipe": "longrope"}, "a recipe needs a target_length"),
    "neither recipe nor stages": ({"model": "M", "data": "x"}, "give either 'recipe' or 'stages'"),
    "recipe and stages": (ONE_LINE | plan(search()), "give either 'recipe' or 'stages'"),
    "stages with a target": (plan(search(), target_length=4), "target_length and middle_length go with a recipe"),
    "a middle of longrope2": (ONE_LINE | {"recipe": "longrope2", "middle_length": 9}, "only the recipe 'longrope' has"),
    "documents too short": (
        plan(search(), data={"files": ["x"], "least_tokens": 512}),
        "data.least_tokens is 512, but the plan goes up to 1024 tokens",
    ),
    "an unknown kind": (plan({"kind": "pray"}), "stages.0: Input tag 'pray'"),
    "an unknown key": (plan(search(), hope=True), "hope: unknown key"),
    "an unknown key of a stage": (plan(search(hope=True)), "stages.0.search.hope: unknown key"),
}


@pytest.mark.parametrize(("document", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match="the plan is not valid") as refused:
        parse_plan(document)
    assert reason in str(refused.value) or pytest.fail(str(refused.value))
    assert "\n" not in str(refused.value)


def references(document: dict[str, Any]) -> list[dict[str, Any]]:
    stages = parse_plan(document).expanded().stages
    assert stages is not None
    shown = {"name", "model", "factors", "start_from", "short"}
    return [stage.model_dump(include=shown, exclude_none=True) for stage in stages]


def test_one_line_is_the_whole_recipe() -> None:
    assert references(ONE_LINE) == [
        {"name": "search-1", "model": "original"},
        {"name": "finetune-1", "model": "original", "factors": "search-1"},
        {"name": "search-2", "model": "finetune-1", "start_from": "search-1"},
        {"name": "readjust-1", "model": "finetune-1", "factors": "search-2"},
        {"name": "evaluate-1", "model": "finetune-1", "factors": "search-2", "short": "readjust-1"},
        {"name": "export-1", "model": "finetune-1", "factors": "search-2"},
    ]
    expanded = parse_plan(ONE_LINE).expanded()
    lengths = [stage.target_length for stage in expanded.stages or () if isinstance(stage, SearchStage)]
    assert lengths == [2048, 8192]
    assert expanded.longest == 8192
    assert parse_plan(expanded.model_dump(mode="json")).expanded() == expanded


def test_longrope2() -> None:
    stages = parse_plan(ONE_LINE | {"recipe": "longrope2", "seed": 5}).expanded().stages
    assert stages is not None
    assert [stage.kind for stage in stages] == ["search", "finetune", "evaluate", "export"]
    first, second, *_ = (stage.model_dump() for stage in stages)
    assert (first["space"]["critical_dimension"], first["objective"]["kind"]) == ("search", "needle")
    assert second["settings"]["mixed_window"] == 0.5
    assert second["settings"]["seed"] == 5


def test_a_direct_search_beside_the_stages_is_not_taken_for_theirs() -> None:
    direct = search(8192, name="direct", model="original")
    shown = references(plan(search(2048), FINETUNE, search(8192), direct, READJUST, EVALUATE))
    assert shown[3] == {"name": "direct", "model": "original", "start_from": "search-1"}
    assert shown[4]["factors"] == shown[5]["factors"] == "search-2"


def test_a_checkpoint_from_elsewhere_takes_the_place_of_a_training() -> None:
    shown = references(plan(search(), AWAIT, search(2048), EVALUATE))
    assert shown[2] == {"name": "search-2", "model": "await_checkpoint-1", "start_from": "search-1"}
    assert shown[3]["model"] == "await_checkpoint-1"


def test_short_forms_and_defaults_of_a_stage() -> None:
    stages = parse_plan(plan(search(strategy="cma", budget=12, objective="needle", space={"upper_bound": 2.0}))).stages
    assert stages is not None
    (stage,) = stages
    assert isinstance(stage, SearchStage)
    assert (stage.strategy.kind, stage.budget.candidates, stage.objective.kind) == ("cma", 12, "needle")
    assert stage.space.initial_tokens == [0]


def test_what_is_a_plan() -> None:
    assert is_plan(ONE_LINE)
    assert is_plan(plan())
    assert not is_plan({"model": "M", "data": "x", "target_length": 64})
    assert not is_plan([ONE_LINE])


def test_a_file_that_is_not_a_plan(tmp_path: Any) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(SpecError, match=r"plan\.json is not JSON"):
        read_plan(tmp_path / "plan.json")


OLD = {
    "4046ace37ab8846340018acd7d305e8d8552a180891bc66267241f52b2726841": {
        "model": "M",
        "data": "x.txt",
        "target_length": 128,
    },
    "9965f274f75d65e5789570db5258974ebbe87ec911e63fd133d69290b3392d1a": {
        "model": "M",
        "data": ["x.txt"],
        "target_length": 4096,
        "objective": "needle",
        "strategy": "evolution",
        "space": {"initial_tokens": [0], "critical_dimension": "search"},
        "warm_start": {
            "factors": [{"source": "a", "rescale_factors": [1, 2.5], "scale": 4}],
            "rescale_factors": [[1, 2]],
        },
        "racing": True,
        "seed": 3,
    },
}
"""Identities as they were before there were plans."""


@pytest.mark.parametrize(("sha256", "document"), OLD.items())
def test_jobs_keep_their_identity(sha256: str, document: dict[str, Any]) -> None:
    spec = parse_spec(document)
    assert spec.sha256 == sha256
    changed = [
        {"data": spec.data.model_copy(update={"least_tokens": 8192})},
        {"space": spec.space.model_copy(update={"scale": 4.0})},
    ]
    assert len({spec.model_copy(update=one).sha256 for one in changed} | {sha256}) == 3


MODEL = FactorsModel(
    id="M", architecture="L", rope_theta=1e4, rotary_dim=4, original_length=256, base_rope_type="default"
)


def found(target: int, attention_factor: float = 1.2, held_out: float | None = None) -> Outcome:
    factors = Factors.of([1.0, target / 256], attention_factor=attention_factor)
    file = factors_file(factors, MODEL, target, MeasuredPerplexity(held_out=held_out))
    return Outcome(factors=file.as_json())


def outcomes() -> list[Outcome]:
    return [found(2048), Outcome(model=ModelSpec(id="made")), found(8192), found(256), Outcome(), Outcome()]


def test_work_holds_everything_and_survives_json() -> None:
    spec, known = parse_plan(ONE_LINE | {"data": {"files": ["b"], "held_out_documents": 3}}), outcomes()
    works = [work_of(spec, number, known[:number]) for number in range(6)]
    assert [work.kind for work in works] == ["search", "finetune", "search", "readjust", "evaluate", "export"]
    for work in works:
        again = parse_work(json.loads(json.dumps(work.model_dump(mode="json"))))
        assert again == work
        assert again.sha256 == work.sha256
        data = work.job.data if isinstance(work, SearchWork) else getattr(work, "data", None)
        assert data is None or (data.least_tokens, data.held_out_documents) == (8192, 3)
    for outcome in known:
        assert parse_outcome(json.loads(json.dumps(outcome.model_dump(mode="json")))) == outcome
    assert len({work.sha256 for work in works}) == 6

    second = works[2]
    assert isinstance(second, SearchWork)
    assert second.job.model.id == "made"
    assert [one.scale for one in second.job.warm_start.factors] == [8.0]

    readjust = works[3]
    assert isinstance(readjust, ReadjustWork)
    job = readjust.job
    assert (job.target_length, job.space.scale, job.space.attention_factor) == (256, 32.0, 1.2)
    starts = job.warm_start.factors
    assert [one.compare_as for one in starts] == ["long", None, None, None]
    assert starts[2].rescale_factors == pytest.approx([1.0, 32**0.5])
    assert readjust.long == known[2].factors


def test_the_identity_of_work_is_what_its_result_depends_on() -> None:
    spec, known = parse_plan(ONE_LINE), outcomes()

    def identities(document: dict[str, Any], known: list[Outcome] = known) -> list[str]:
        return [work_of(parse_plan(document), number, known[:number]).sha256 for number in range(6)]

    base = identities(ONE_LINE)
    document = spec.expanded().model_dump(mode="json")
    assert identities(document) == base

    def changed(stage: int, **changes: Any) -> list[int]:
        """Numbers of the stages whose work is another when one stage is written otherwise."""
        other = json.loads(json.dumps(document))
        other["stages"][stage] |= changes
        return [number for number, one in enumerate(identities(other)) if one != base[number]]

    assert changed(0, budget={"candidates": 5}) == []
    assert changed(4, name="measured") == []
    assert changed(1, settings={"steps": 7}) == [1]
    assert changed(4, lengths=[512]) == [4]
    assert changed(5, profile="switching", short="readjust-1") == [5]
    assert identities(ONE_LINE | {"name": "other"}) == base
    assert all(one != two for one, two in zip(identities(ONE_LINE | {"seed": 1})[:5], base[:5], strict=True))

    assert identities(ONE_LINE, [*known[:2], found(8192, held_out=3.0), *known[3:]]) == base
    others = identities(ONE_LINE, [*known[:2], found(8192, attention_factor=1.3), *known[3:]])
    assert [one == two for one, two in zip(others, base, strict=True)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    "document", [None, {"kind": "search"}, {"kind": "x"}, {"kind": "export", "stage": "a", "b": 1}]
)
def test_what_is_no_work(document: Any) -> None:
    with pytest.raises(SpecError, match="the work of a stage is not valid"):
        parse_work(document)
    with pytest.raises(SpecError, match="the outcome of a stage is not valid"):
        parse_outcome(document or [])


def test_a_job_of_a_plan_is_a_job() -> None:
    work = work_of(parse_plan(ONE_LINE), 0, [])
    assert isinstance(work, SearchWork)
    assert JobSpec.model_validate(work.job.model_dump(mode="json")) == work.job
    assert work.sha256 == sha256_of({"kind": "search", "job": work.job.sha256})
