"""Judges that no search has run on: recipes drawn from a seed, and a record of when each judge was first looked at.

``fresh-7-32x`` is the judge of seed 7 for 32 times its context. Its text, architecture, size, base and context are
drawn from the seed, so any seed that is not in the record gives judges that nobody has seen.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.recipes import RECIPES, Recipe

RECORD = Path(__file__).with_name("judges_seen.json")
"""Dates by the names of judges, committed with the settings that they judge."""
TEXTS = ("docstrings", "headers", "python", "books")
CONTEXTS = {4: (256,), 8: (128, 256), 16: (64, 128), 32: (64,), 64: (64,)}
"""Contexts that keep the target at 4,096 tokens or fewer, by the scale."""
SCALES = tuple(CONTEXTS)


def fresh_judge(name: str) -> Recipe | None:
    """Return the recipe of a judge by its name, ``fresh-SEED-SCALEx``; None if the name is of another kind."""
    match = re.fullmatch(r"fresh-(\d+)-(\d+)x", name)
    if match is None or int(match[2]) not in CONTEXTS:
        return None
    seed, scale = int(match[1]), int(match[2])
    rng = np.random.default_rng([seed, scale])
    context = int(rng.choice(CONTEXTS[scale]))
    heads, head_dim = [(6, 32), (3, 64), (2, 128)][int(rng.integers(3))]
    return Recipe(
        name=name,
        role="judge",
        architecture=("llama", "qwen3")[int(rng.integers(2))],
        text=TEXTS[int(rng.integers(len(TEXTS)))],
        context=context,
        target=scale * context,
        hidden=heads * head_dim,
        layers=int(rng.integers(3, 5)),
        heads=heads,
        key_value_heads=1 if heads == 2 else heads // 3 * int(rng.choice([1, 3])),
        head_dim=head_dim,
        rope_theta=float(rng.choice([10_000.0, 50_000.0, 500_000.0])),
        steps=int(rng.integers(4, 8)) * 100,
        seed=seed,
    )


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a model by its name.

    Raises:
        SystemExit: there is none.
    """
    recipe = RECIPES.get(name) or fresh_judge(name)
    if recipe is None:
        raise SystemExit(f"no model {name!r}: choose among {', '.join(RECIPES)} and fresh-SEED-SCALEx")
    return recipe


def names(seed: int, scales: tuple[int, ...] = SCALES) -> list[str]:
    """The names of the judges of a seed."""
    return [f"fresh-{seed}-{scale}x" for scale in scales]


def first_looked_at(name: str) -> str:
    """Say when a judge was first looked at; that is now, and is recorded, if it has not been."""
    seen: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8"))
    if name in seen:
        return f"first looked at on {seen[name]}"
    seen[name] = datetime.now(UTC).date().isoformat()
    RECORD.write_text(json.dumps(seen, indent=1) + "\n", encoding="utf-8")
    return "not looked at before this run"
