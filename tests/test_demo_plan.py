"""The claims of the progressive demo are read off its report, and can fail."""

from copy import deepcopy
from typing import Any

import pytest

from api.cli import demo_plan
from factor_search.plan.check import check_plan
from factor_search.plan.spec import parse_plan

ROWS = [
    {"name": "found", "is": "found-1", "held_out": 3.0, "difference": None, "difference_standard_error": None},
    {"name": "yarn", "is": "yarn", "held_out": 3.2, "difference": 0.06, "difference_standard_error": 0.01},
    {"name": "ntk", "is": "ntk", "held_out": 9.0, "difference": 1.1, "difference_standard_error": 0.02},
    {"name": "none", "is": "none", "held_out": None, "difference": None, "difference_standard_error": None},
    {"name": "pi", "is": "pi", "held_out": 30.0, "difference": 2.3, "difference_standard_error": 0.05},
]
REPORT: dict[str, Any] = {
    "stages": [
        {"name": "middle", "results": ROWS},
        {"name": "long", "results": ROWS},
        {
            "name": "measure",
            "ladder": {
                "rungs": [
                    {"name": "found", "length": demo_plan.MIDDLE, "perplexity": 2.8},
                    {"name": "found", "length": demo_plan.TARGET, "perplexity": 2.9},
                ]
            },
            "short_window": {"recovered": {"share": 0.6, "standard_error": 0.1}},
        },
    ],
    "comparisons": [{"stage": "at-once", "other": "long", "difference": -0.2, "difference_standard_error": 0.02}],
}


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    report: Any = deepcopy(REPORT)
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    found: dict[str, Any] = report
    return found


def test_the_plan_can_be_submitted() -> None:
    plan = parse_plan(demo_plan.specification())
    check_plan(plan)
    assert plan.longest == demo_plan.TARGET


def test_all_claims_hold() -> None:
    claims = demo_plan.claims(REPORT)
    assert all(claim.holds for claim in claims)
    assert demo_plan.table(claims).count("yes ") == len(claims) == 5


@pytest.mark.parametrize(
    ("path", "value", "broken"),
    [
        (("stages", 1, "results", 1, "difference"), 0.005, 0),
        (("stages", 1, "results", 0, "is"), "yarn", 0),
        (("stages", 2, "ladder", "rungs", 1, "perplexity"), 3.09, 1),
        (("stages", 2, "short_window", "recovered", "share"), 0.49, 2),
        (("comparisons", 0, "difference"), 0.2, 3),
        (("comparisons", 0, "difference"), -0.01, 3),
        (("stages", 0, "results", 4, "held_out"), 8.0, 4),
    ],
)
def test_a_claim_that_does_not_hold_is_told(path: tuple[str | int, ...], value: object, broken: int) -> None:
    claims = demo_plan.claims(changed(path, value))
    assert [number for number, claim in enumerate(claims) if not claim.holds] == [broken]
    assert "NO " in demo_plan.table(claims)


def test_texts_that_lose_nothing_need_no_readjustment() -> None:
    claims = demo_plan.claims(changed(("stages", 2, "short_window", "recovered"), None))
    assert claims[2].holds
