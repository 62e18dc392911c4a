"""Names of tasks of lm-evaluation-harness: its own words, never files, since a file of a task can run code."""

import re
from collections.abc import Container, Sequence

from factor_search.errors import SpecError

PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
"""Of a name; paths, addresses and wildcards do not match it."""
LONGEST = 200
FILES = (".yaml", ".yml", ".json", ".jsonl", ".py")


def check_task_names(names: Sequence[str], registered: Container[str] | None = None) -> None:
    """Refuse what is not the name of a task.

    Args:
        names: of tasks.
        registered: the tasks that the installed harness knows; None if it is not asked.

    Raises:
        SpecError: naming the first that is not.
    """
    for name in names:
        if len(name) > LONGEST or not re.fullmatch(PATTERN, name) or name.lower().endswith(FILES):
            raise SpecError(
                f"harness: {name[:LONGEST]!r} is not the name of a task: give names that lm-evaluation-harness lists, "
                "not files or folders"
            )
        if registered is not None and name not in registered:
            raise SpecError(
                f"harness: the installed lm-evaluation-harness has no task {name!r}: choose one that it lists"
            )
