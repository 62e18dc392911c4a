"""Files and folders are written whole or not at all, survive a power failure, and leave nothing behind."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factor_search.errors import OutputError
from factor_search.export.model_folder import write_folder
from factor_search.files.atomic import PARTIAL, move_folder, partial_folder, write_atomically, write_text
from factor_search.finetune.checkpoints import Checkpoints
from factor_search.measure.ledger import Ledger
from factor_search.plan.folders import OUTCOME, Folders
from tests.processes import wait_for
from tests.records import candidate, computed

ROOT = Path(__file__).parents[1]


@contextmanager
def mask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("value", [0o022, 0o027, 0o077, 0o002])
def test_files_and_folders_get_the_mode_that_the_umask_gives(
    value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mask(value), monkeypatch.context() as patch:
        patch.setattr(os, "umask", lambda _: pytest.fail("other threads would write with this mask meanwhile"))
        write_text(tmp_path / "a.txt", "a")
        write_folder(tmp_path / "folder", lambda folder: write_text(folder / "b.txt", "b"))
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~value
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~value


class Order:
    """What is flushed, renamed and removed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, str]] = []
        self._watch(monkeypatch, os, "fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        for name in ("replace", "rename", "unlink", "rmdir"):
            self._watch(monkeypatch, os, name, Path)

    def _watch(self, patch: pytest.MonkeyPatch, where: Any, name: str, path: Callable[[Any], Path]) -> None:
        real = getattr(where, name)

        def watched(first: Any, *others: Any, **options: Any) -> Any:
            last = others[0] if name in ("replace", "rename") else first
            if "dir_fd" not in options or options["dir_fd"] is None:
                self.steps.append((name, path(last).name))
            return real(first, *others, **options)

        patch.setattr(where, name, watched)


def test_a_file_and_its_name_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(monkeypatch)
    write_text(tmp_path / "a.json", "{}")
    kinds = [kind for kind, _ in order.steps]
    assert kinds == ["fsync", "replace", "fsync"]
    assert order.steps[1:] == [("replace", "a.json"), ("fsync", tmp_path.name)]


def test_a_folder_and_its_name_are_flushed_before_what_it_replaces_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "model"
    final.mkdir()
    (final / "old").write_text("old")
    with partial_folder(final) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").write_text("new")
        order = Order(monkeypatch)
        monkeypatch.setattr("shutil.rmtree", lambda path, **_: order.steps.append(("rmtree", Path(path).name)))
        move_folder(partial, final)
    flushed = {name for kind, name in order.steps[: order.steps.index(("fsync", tmp_path.name)) + 1] if kind == "fsync"}
    assert {"sub", "new", partial.name, tmp_path.name} <= flushed
    first_deletion = next(place for place, (kind, _) in enumerate(order.steps) if kind == "rmtree")
    assert first_deletion > order.steps.index(("fsync", tmp_path.name))
    assert (final / "sub" / "new").read_text() == "new"


KILLED = """
import sys
from pathlib import Path
from factor_search.files.atomic import partial_folder, replacing
final = Path(sys.argv[1])
if sys.argv[2] == "file":
    with replacing(final) as stream:
        stream.write(b"half")
        print("written", flush=True)
        sys.stdin.read()
with partial_folder(final) as folder:
    (folder / "half").write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def left_behind(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if PARTIAL in item.name)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_kill_leaves_is_removed_but_not_what_is_in_use(kind: str, tmp_path: Path) -> None:
    final = tmp_path / "result [1] *.bin"  # characters of a glob
    command = [sys.executable, "-c", KILLED, str(final), kind]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(2)
    ]
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
        assert len(left_behind(tmp_path)) == 2
        writers[0].kill()
        writers[0].wait()
        other = tmp_path / f".other{PARTIAL}1"
        other.mkdir()
        write_folder(final, lambda folder: write_text(folder / "whole", "whole"))
        (kept, untouched) = left_behind(tmp_path)
        assert untouched.startswith(".result") or kept.startswith(".result")
        assert other.exists()
        writers[1].kill()
    with partial_folder(final):
        assert len(left_behind(tmp_path)) == 2  # ours, and the other's
    assert left_behind(tmp_path) == [other.name]


def test_checkpoints_that_a_kill_left_are_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in (".partial-old", f".step-00000007{PARTIAL}1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    Checkpoints(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_in_any_script(tmp_path: Path) -> None:
    write_text(tmp_path / ("模" * 80 + ".json"), "{}")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["{}"]


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    """A writer that begins removes what is abandoned, and nothing of those that are writing."""
    file, errors = tmp_path / "a", []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                write_atomically(file, bytes([number]) * 1000, required=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(file.read_bytes())) == 1
    assert left_behind(tmp_path) == []


def test_a_dropped_stage_is_not_done_even_if_its_folder_is_only_half_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".stages" / "search-1"
    folder.mkdir(parents=True)
    (folder / "work.json").write_text('{"stage": "search"}')
    (folder / OUTCOME).write_text("{}")
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Folders(tmp_path).drop({"search"})
    assert not (folder / OUTCOME).exists()


# A full disk.


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(room=st.integers(0, 1200))
def test_a_ledger_on_a_full_disk_holds_whole_lines(room: int, tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    file.unlink(missing_ok=True)
    items = [computed(candidate(number)).evaluation for number in range(6)]
    stored, said = [], ""
    with Ledger(file) as ledger:
        ledger._stream = Full(ledger._stream, room)  # type: ignore[assignment]
        try:
            for item in items:
                ledger.add(item)
                stored.append(item)
        except OutputError as error:
            said = str(error)
    assert (said == "") == (len(stored) == len(items))
    assert all(words in said for words in ("No space left on device", "free some space")) or not said
    content = file.read_bytes()
    assert content.count(b"\n") == len(stored)
    assert content.endswith(b"\n") or not content
    with Ledger(file) as ledger:
        assert [ledger.get(item.key) for item in items[: len(stored)]] == stored
        for item in items[len(stored) :]:
            ledger.add(item)
    with Ledger(file) as ledger:
        assert [ledger.get(item.key) for item in items] == items


class Full:
    """A file on a disk that has so much room: of what does not fit, a part is written first."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream, self._room = stream, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, data: bytes) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = bytes(data[: self._room])
        self._room -= len(fits)
        return int(self._stream.write(fits))


def run(checkpoint: Path, texts: Path, out: Path, limit: int | None = None) -> "subprocess.CompletedProcess[str]":
    """A search in a process whose files may not grow beyond a limit, as on a full disk."""

    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "api", "run", "--model", str(checkpoint), "--data", f"{texts}/*.txt"]
    command += ["--target-length", "128", "--set", "budget.candidates=6", "--set", "strategy=random"]
    command += ["--set", "data.search_documents=2", "--set", "data.validation_documents=2"]
    command += ["--set", "data.held_out_documents=2", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, preexec_fn=limited)


def test_a_search_on_a_full_disk_says_so_in_a_line_and_is_continued_exactly(
    checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    whole = run(checkpoint, texts, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    size = (tmp_path / "whole" / "evaluations.jsonl").stat().st_size
    for limit in (100, size // 2, size + 100):  # the last leaves no room for the report
        full = run(checkpoint, texts, tmp_path / "full", limit)
        assert full.returncode == 1
        said = full.stderr.splitlines()[-1]
        assert said.startswith("factor-search: error: cannot write"), full.stderr
        assert "free some space" in said
        assert "Traceback" not in full.stderr
    again = run(checkpoint, texts, tmp_path / "full")
    assert again.returncode == 0, again.stderr
    for name in ("evaluations.jsonl", "factors.json"):
        lines = [(tmp_path / folder / name).read_text().splitlines() for folder in ("whole", "full")]
        assert [timeless(line) for line in lines[0]] == [timeless(line) for line in lines[1]]
    assert left_behind(tmp_path / "full") == []


def timeless(line: str) -> str:
    return line.split('"seconds"')[0] if '"seconds"' in line else line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_search_as_ctrl_c_does(number: int, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api", "run", "--model", str(checkpoint), "--data", f"{texts}/*.txt"]
    command += ["--target-length", "128", "--set", "budget.candidates=100000", "--set", "strategy=random"]
    command += ["--set", "data.search_documents=2", "--set", "data.validation_documents=2"]
    command += ["--set", "data.held_out_documents=2", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        ledger = tmp_path / "out" / "evaluations.jsonl"
        wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 3, 60)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "holds a partial result" in err
    assert (tmp_path / "out" / "factors.json").exists()
