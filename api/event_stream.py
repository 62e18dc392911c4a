"""The format of server-sent events, read."""

from collections.abc import Iterable, Iterator


def read_stream(lines: Iterable[str]) -> Iterator[str]:
    """The data of each complete event in a stream; comments, and an event that was cut off, are left out."""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield "\n".join(data)
            data = []
            continue
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
