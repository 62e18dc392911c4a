"""A tiny plan for the tests: a random model over bytes, 64 to 128 to 256 tokens."""

from pathlib import Path
from typing import Any

DATA = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
BUDGET = 14
SETTINGS = {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 2, "checkpoint_every": 2, "train_length": 64}


def stages(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Every kind of stage but a waiting one; changes are by name."""
    every: list[dict[str, Any]] = [
        {"kind": "search", "name": "search-1", "target_length": 128, "budget": BUDGET},
        {"kind": "finetune", "name": "finetune-1", "settings": SETTINGS},
        {"kind": "search", "name": "search-2", "target_length": 256, "budget": BUDGET},
        {"kind": "readjust", "name": "readjust-1", "budget": BUDGET},
        {"kind": "evaluate", "name": "evaluate-1", "passkey": {"depths": 2, "lengths": [224, 256]}},
        {"kind": "export", "name": "export-1", "profile": "switching"},
    ]
    return [stage | changes.get(stage["name"], {}) for stage in every]


def plan_document(checkpoint: Path, texts: Path, **changes: Any) -> dict[str, Any]:
    document = {
        "name": "tiny plan",
        "model": {"id": str(checkpoint), "device": "cpu"},
        "data": DATA | {"files": [str(texts / "*.txt")]},
        "stages": stages(),
    }
    return document | changes
