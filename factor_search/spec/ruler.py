"""Names of the tasks of RULER (2404.06654)."""

from typing import Literal, TypeAlias, get_args

RulerTask: TypeAlias = Literal[
    "single", "multi-key", "multi-value", "multi-query", "variable-tracking", "common-words", "frequent-words"
]
RULER_TASKS: tuple[RulerTask, ...] = get_args(RulerTask)
