"""What a tracker of experiments is to this package; one file beside this one for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

Value = str | int | float | bool | None
Axis = Literal["candidate", "tokens", "step", "end"]
"""What figures are drawn over: the number of an evaluation, the tokens scored so far, a step of another stage, or how
many evaluations there were when the search ended, which may continue with a larger budget."""
AXES: tuple[Axis, ...] = get_args(Axis)
End = Literal["finished", "failed", "cancelled", "paused", "interrupted"]
"""How a run ended; one that is paused or was interrupted may continue."""


@dataclass(frozen=True, kw_only=True)
class RunName:
    """A run as trackers know it."""

    id: str
    """Letters, digits and hyphens; the same when the run continues, in this process or another."""
    name: str
    group: str | None = None
    """The plan that it is a stage of."""
    folder: Path
    """Exists, is of this run alone and the same when it continues: for files of the tracker."""


class Tracker(Protocol):
    """A run in a tracker, new or continued.

    All methods are called in one thread, which is not the search's. They may take long and raise anything.
    """

    reached: Mapping[Axis, int]
    """The last place on each axis for which an earlier process has logged figures."""

    def parameters(self, values: Mapping[str, Value]) -> None:
        """What is searched; called again when the run continues, perhaps with some other values."""
        ...

    def figures(self, values: Mapping[str, float], axis: Axis, at: int) -> None:
        """Add a point to curves; places on an axis never decrease, and values may be NaN or infinite."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Show a table."""
        ...

    def file(self, name: str, content: str) -> None:
        """Keep a file of text with the run, if the tracker keeps files."""
        ...

    def end(self, state: End) -> None:
        """Write all that is left, and let the run end."""
        ...


def named(values: Mapping[str, float], axis: Axis, at: int) -> dict[str, float]:
    """The names under which figures are logged, one group an axis, with the place itself."""
    return {f"by_{axis}/{name}": value for name, value in values.items()} | {f"by_{axis}/{axis}": at}
