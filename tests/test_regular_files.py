"""Users' files are opened only if they are regular, in every reader."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factor_search.errors import FactorSearchError, FactorsError, OutputError, SpecError
from factor_search.export.foreign_files import document_of
from factor_search.factors_file import read_factors
from factor_search.files.gguf import read_header
from factor_search.files.json_documents import LARGEST_JSON, read_json
from factor_search.files.regular import open_regular, read_regular
from factor_search.plan.spec import read_plan
from factor_search.spec import read_spec
from factor_search.text.documents import documents_from_files


def within_seconds(call: Callable[[], Any], seconds: float = 10) -> BaseException | None:
    """The error that a call ends with; a call that waits fails the test."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"
    return caught[0] if caught else None


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What is not a regular file, by kind, without an ending."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/socket")  # the path of a socket must be short
        (tmp_path / "socket").symlink_to(f"{short}/socket")
        yield {
            "a pipe": tmp_path / "fifo",
            "a pipe .*link": tmp_path / "link",
            "a folder": tmp_path / "folder",
            "a socket": tmp_path / "socket",
            "a device": Path("/dev/zero"),
        }


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "specification": ("x.json", read_spec),
    "plan": ("x.json", read_plan),
    "factors": ("x.json", read_factors),
    "foreign JSON": ("config.json", document_of),
    "foreign list": ("x.csv", document_of),
    "foreign array": ("x.npy", document_of),
    "GGUF": ("x.gguf", read_header),
    **{
        ending: (f"x{ending}", lambda file: list(documents_from_files([str(file)])))
        for ending in (".txt", ".json", ".jsonl", ".csv", ".parquet", ".txt.gz", ".jsonl.zst", "")
    },
}


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_no_reader_waits_for_what_is_not_a_regular_file(
    kind: str, name: str, read: Callable[[Path], Any], special: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / name).symlink_to(special[kind])
    error = within_seconds(lambda: read(tmp_path / name))
    assert isinstance(error, FactorSearchError)
    assert f"{name} is {kind}" in str(error)
    assert "\n" not in str(error)


def test_each_kind_is_named(special: dict[str, Path]) -> None:
    for kind, file in special.items():
        with pytest.raises(SpecError, match=f"is {kind.split(' .')[0]}.*, not a regular file"):
            open_regular(file, SpecError)


def test_what_becomes_a_fifo_between_check_and_opening(
    special: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factor_search.files.regular.require_regular", lambda *arguments: None)
    error = within_seconds(lambda: open_regular(special["a pipe"], SpecError))
    assert isinstance(error, SpecError)
    assert "is a pipe" in str(error)


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "No such file"), ("a\0b", "null"), ("x" * 300, "File name too long")]
)
def test_what_cannot_be_opened(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OutputError, match=f"cannot read .*{message}"):
        open_regular(tmp_path / name, OutputError)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * 2**20)
    assert len(read_regular(file, SpecError, 2**20)) == 2**20
    file.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(SpecError, match="x is larger than 1 MiB"):
        read_regular(file, SpecError, 2**20)


def test_a_sparse_json_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "job.json").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(FactorsError, match=f"is larger than {LARGEST_JSON // 2**20} MiB"):
        read_json(tmp_path / "job.json", FactorsError)
