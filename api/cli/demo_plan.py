"""The plan of ``factor-search demo --progressive`` and its claims, each checked against the plan's own report."""

from dataclasses import dataclass
from typing import Any

from factor_search.report.document import FOUND
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files, standard_library

ORIGINAL, MIDDLE, TARGET = 256, 2048, 8192
"""Tokens: the shipped model's original length, the length it is fine-tuned for, and the length searched last."""
SPACE = {"attention_factor": 1.05}
"""One value for all stages, below the formula's 1.17 and 1.27: long and short texts share the one used in training, and
any value above 1 degrades short texts (see docs/experiments.md)."""


@dataclass(frozen=True)
class Claim:
    """A claim about extending a context window by stages."""

    text: str
    figure: str
    """As measured on held-out documents."""
    holds: bool


def specification() -> dict[str, object]:
    """The plan, as a user would write it; ``at-once`` is the comparison."""
    return {
        "name": "demo-progressive",
        "model": {"id": str(CHECKPOINT), "device": "cpu"},
        "data": {
            "files": [str(file) for file in held_out_files()],
            "search_documents": 4,
            "validation_documents": 3,
            "held_out_documents": 12,
        },
        "training_files": [str(standard_library() / "*.py")],
        "stages": [
            {"kind": "search", "name": "middle", "target_length": MIDDLE, "space": SPACE, "budget": 60},
            {"kind": "search", "name": "at-once", "target_length": TARGET, "budget": 60},
            {
                "kind": "finetune",
                "name": "tune",
                "factors": "middle",
                "settings": {
                    "data_form": "pose",
                    "chunks": 4,
                    "train_length": 1024,
                    "batch_size": 8,
                    "steps": 100,
                    "learning_rate": 1e-3,
                    "warmup_steps": 10,
                    "precision": "bfloat16",
                    "mixed_window": 0.3,
                    "checkpoint_every": 20,
                },
            },
            {
                "kind": "search",
                "name": "long",
                "target_length": TARGET,
                "start_from": "middle",
                "space": SPACE,
                "budget": 60,
            },
            {"kind": "readjust", "name": "short", "budget": 60},
            {
                "kind": "evaluate",
                "name": "measure",
                "passkey": {"lengths": [ORIGINAL * 2, MIDDLE, TARGET], "depths": 3, "documents": 2},
            },
            {"kind": "export", "name": "export"},
        ],
    }


def claims(report: dict[str, Any]) -> list[Claim]:
    """Each claim with what the report of the finished plan says."""
    stages = {stage["name"]: stage for stage in report["stages"]}
    measured = stages["measure"]
    return [
        _beats_closed_forms(stages["long"]),
        _keeps_perplexity(measured["ladder"]),
        _recovers(measured["short_window"]),
        _beats_at_once(report["comparisons"]),
        _keeps_order(stages["middle"]),
    ]


def table(checked: list[Claim]) -> str:
    """The claims for a terminal."""
    return "\n".join(f"{'yes' if one.holds else 'NO':4}{one.text}: {one.figure}" for one in checked)


def _beats_closed_forms(search: dict[str, Any]) -> Claim:
    others = [row for row in search["results"][1:] if row["difference"] is not None]
    closest = min(others, key=lambda row: row["difference"])
    errors = closest["difference"] / closest["difference_standard_error"]
    return Claim(
        f"on the fine-tuned model, the factors found for {TARGET:,} tokens beat every closed form",
        f"{closest['name']} by {closest['difference']:.4f} nats per token, {errors:.1f} standard errors",
        search["results"][0]["is"].startswith(FOUND) and closest["difference"] > closest["difference_standard_error"],
    )


def _keeps_perplexity(ladder: dict[str, Any]) -> Claim:
    middle, target = (_perplexities(ladder, length)[FOUND] for length in (MIDDLE, TARGET))
    return Claim(
        f"perplexity at {TARGET:,} tokens is within 10 % of that at {MIDDLE:,}",
        f"{target:.4f} against {middle:.4f}",
        target <= 1.1 * middle,
    )


def _recovers(short_window: dict[str, Any]) -> Claim:
    recovered = short_window["recovered"]
    share = recovered["share"] if recovered else 0.0
    return Claim(
        f"readjustment recovers half of the degradation at {ORIGINAL} tokens, or more",
        f"{share:.0%} ± {recovered['standard_error']:.0%}" if recovered else "there is no degradation",
        recovered is None or share >= 0.5,
    )


def _beats_at_once(comparisons: list[dict[str, Any]]) -> Claim:
    one = next(one for one in comparisons if {one["stage"], one["other"]} == {"long", "at-once"})
    gained = one["difference"] * (1 if one["stage"] == "long" else -1)
    error = one["difference_standard_error"]
    return Claim(
        f"extending by stages beats searching at once for {TARGET:,} tokens without fine-tuning",
        f"by {gained:.4f} ± {error:.4f} nats per token",
        gained > error,
    )


def _keeps_order(search: dict[str, Any]) -> Claim:
    """As in the LongRoPE paper's tables of models that are not fine-tuned (2402.13753, table 1)."""
    rows = {row["name"]: row["held_out"] for row in search["results"]}
    ranked = [rows[name] for name in ("pi", "ntk", "yarn", FOUND)]
    return Claim(
        f"without fine-tuning, at {MIDDLE:,} tokens, PI is worst, then NTK, then YaRN, and the found factors are best",
        ", ".join(f"{value:.4f}" for value in ranked),
        ranked == sorted(ranked, reverse=True),
    )


def _perplexities(ladder: dict[str, Any], length: int) -> dict[str, float]:
    return {rung["name"]: rung["perplexity"] for rung in ladder["rungs"] if rung["length"] == length}
