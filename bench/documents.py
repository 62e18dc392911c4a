"""Peak memory and time of reading files of documents, compared with reading them whole: ``python -m bench.documents``.

Each file has rows of about 6 kB with numbers that do not repeat, and ``--megabytes`` in all. Each measurement runs in
its own process, which iterates over all documents and reports its peak resident memory minus that before. ``whole`` is
how version 0.1.0 read JSON lines: all bytes, all text, all lines. The last line reads two documents only, as a job that
needs no more does.
"""

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FORMATS = ("jsonl", "json", "csv", "jsonl.gz", "jsonl.zst", "parquet")


def write(folder: Path, size: int) -> None:
    """Write the same rows in every format; the uncompressed ones have about ``size`` bytes."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    texts = [
        f"{n} " + " ".join(str((n * 7919 + k * 104729) % 1_000_003) for k in range(900)) for n in range(size // 6200)
    ]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (folder / "rows.jsonl").write_bytes(lines)
    (folder / "rows.json").write_text(json.dumps([{"text": text} for text in texts]))
    for ending, codec in {"gz": "gzip", "zst": "zstd"}.items():
        (folder / f"rows.jsonl.{ending}").write_bytes(pyarrow.compress(lines, codec, asbytes=True))
    table = pyarrow.table({"text": texts})
    pyarrow.csv.write_csv(table, folder / "rows.csv")
    pyarrow.parquet.write_table(table, folder / "rows.parquet")


def whole(file: Path) -> Iterator[str]:
    for line in file.read_bytes().decode("utf-8-sig").split("\n"):
        if line.strip():
            yield json.loads(line)["text"]


def streamed(file: Path) -> Iterator[str]:
    from factor_search.text.documents import documents_from_files

    return (document.text for document in documents_from_files([str(file)]))


def memory_bytes(key: str) -> int:
    """``VmRSS``, resident memory, or ``VmHWM``, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


WAYS: dict[str, Callable[[Path], Iterator[str]]] = {"whole": whole, "streamed": streamed}


def measure(way: str, file: Path, count: int | None) -> tuple[int, float]:
    """Bytes and seconds in this process."""
    for library in ("pyarrow.parquet", "factor_search.text.documents"):
        importlib.import_module(library)  # so that it does not count
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, from the imports, is forgotten
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    characters = sum(len(text) for text in itertools.islice(WAYS[way](file), count))
    assert characters
    return memory_bytes("VmHWM") - before, time.perf_counter() - start


def in_own_process(way: str, file: Path, count: int | None = None) -> tuple[int, float]:
    command = [sys.executable, "-m", "bench.documents", "--way", way, "--file", str(file)]
    command += [] if count is None else ["--count", str(count)]
    memory, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(memory), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    if arguments.way:
        print(*measure(arguments.way, arguments.file, arguments.count))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.megabytes * 10**6)
        jobs: list[tuple[str, str, int | None]] = [
            ("whole", "jsonl", None),
            *(("streamed", ending, None) for ending in FORMATS),
        ]
        jobs += [("whole", "jsonl", 2), ("streamed", "jsonl", 2)]
        for way, ending, count in jobs:
            file = Path(folder, f"rows.{ending}")
            memory, seconds = in_own_process(way, file, count)
            size = file.stat().st_size
            what = f"{count} documents" if count else "all documents"
            print(
                f"{way}, .{ending} of {size / 1e6:.0f} MB, {what}: {memory / 1e6:.1f} MB, "
                f"{memory / size:.3f} times the file, {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
