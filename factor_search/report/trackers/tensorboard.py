"""TensorBoard: event files in the folder of the run, which ``tensorboard --logdir`` shows."""

import json
import os
import time
from collections.abc import Mapping, Sequence

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from factor_search.report.trackers.contract import AXES, Axis, End, RunName, Value, named


class Run:
    """See :class:`factor_search.report.trackers.contract.Tracker`."""

    def __init__(self, name: RunName) -> None:
        folder = str(name.folder / "tensorboard")
        os.makedirs(folder, exist_ok=True)
        self.reached: Mapping[Axis, int] = _reached(folder)
        self._writer = EventFileWriter(folder)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As a table."""
        self.table("parameters", ("parameter", "value"), list(values.items()))

    def figures(self, values: Mapping[str, float], axis: Axis, at: int) -> None:
        """As scalars."""
        scalars = named(values, axis, at).items()
        self._write([Summary.Value(tag=tag, simple_value=value) for tag, value in scalars], at)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """As text: TensorBoard draws Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        self._text(name, "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines))

    def file(self, name: str, content: str) -> None:
        """As text, if it is JSON; a page would not be shown."""
        if name.endswith(".json"):
            self._text(name, "\n".join(f"    {line}" for line in content.splitlines()))

    def end(self, state: End) -> None:
        """The state as text."""
        self._text("state", state)
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        self._write([Summary.Value(tag=tag, metadata=metadata, tensor=tensor)], 0)

    def _write(self, values: list[Summary.Value], at: int) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=at, summary=Summary(value=values)))


def _cell(value: Value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _reached(folder: str) -> dict[Axis, int]:
    events = EventAccumulator(folder, size_guidance={SCALARS: 1})
    events.Reload()
    known = set(events.Tags()[SCALARS])
    return {axis: events.Scalars(tag)[-1].step for axis in AXES if (tag := f"by_{axis}/{axis}") in known}
