"""Documents' files of every format are read the same, one row at a time; others are refused by name."""

import csv
import gzip
import io
import json
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_search.errors import DataError
from factor_search.files.json_documents import LARGEST_JSON
from factor_search.job import check_possible
from factor_search.spec import parse_spec
from factor_search.text import formats, parquet_rows, rows, tokens
from factor_search.text.documents import document_files, documents_from_files
from factor_search.text.formats import LONGEST_DOCUMENT, LONGEST_LINE, REFUSED

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Rows = list[str]


def read(*files: Path, column: str = "text") -> Rows:
    return [document.text for document in documents_from_files([str(file) for file in files], column)]


def json_lines(texts: Rows) -> bytes:
    return b"".join(json.dumps({"n": n, "text": text}).encode() + b"\n" for n, text in enumerate(texts))


def table(texts: Rows, delimiter: str) -> bytes:
    content = io.StringIO()
    writer = csv.writer(content, delimiter=delimiter)
    writer.writerow(["n", "text"])
    writer.writerows(enumerate(texts))
    return content.getvalue().encode()


def parquet(texts: Any, kind: Any = None, **options: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(
        pyarrow.table({"n": list(range(len(texts))), "text": pyarrow.array(texts, kind)}), content, **options
    )
    return content.getvalue()


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def zst(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, "zstd", asbytes=True))


FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": json_lines,
    "rows.json": json_lines,
    "array.json": lambda texts: json.dumps([{"text": text} for text in texts]).encode(),
    "strings.json": lambda texts: json.dumps(texts, ensure_ascii=False, indent=1).encode(),
    "pretty.json": lambda texts: "\n".join(json.dumps({"text": text}, indent=2) for text in texts).encode(),
    "ROWS.JSONL": lambda texts: b"\xef\xbb\xbf\r\n" + json_lines(texts).replace(b"\n", b"\r\n \n"),
    "rows.ndjson": lambda texts: json_lines(texts)[:-1],
    "rows.csv": lambda texts: table(texts, ","),
    "rows.Tsv": lambda texts: b"\xef\xbb\xbf" + table(texts, "\t"),
    "rows.jsonl.gz": lambda texts: gz(json_lines(texts)),
    "members.jsonl.gz": lambda texts: b"".join(gz(json_lines([text])) for text in texts),
    "array.json.GZ": lambda texts: gz(json.dumps(texts).encode()),
    "rows.JSONL.ZST": lambda texts: zst(json_lines(texts)),
    "rows.csv.zst": lambda texts: zst(table(texts, ",")),
    "rows.parquet": parquet,
    "groups.PARQUET": lambda texts: parquet(texts, row_group_size=2, compression="zstd", data_page_size=8),
    "delta.parquet": lambda texts: parquet(texts, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}),
    "pages.parquet": lambda texts: parquet(texts, data_page_version="2.0", write_page_index=True),
    "large.parquet": lambda texts: parquet(texts, pyarrow.large_string()),
    "view.parquet": lambda texts: parquet(texts, pyarrow.string_view()),
    "dictionary.parquet": lambda texts: parquet(texts, pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=7), st.data())
def test_all_formats_give_the_same_texts(tmp_path_factory: pytest.TempPathFactory, texts: Rows, data: Any) -> None:
    folder = tmp_path_factory.mktemp("formats")
    chunk = rows.CHUNK
    try:
        rows.CHUNK = data.draw(st.sampled_from([1, 3, 64, chunk]))
        for name, write in FORMATS.items():
            (folder / name).write_bytes(write(texts))
            assert read(folder / name) == texts, name
    finally:
        rows.CHUNK = chunk


@pytest.mark.parametrize("text", ["", "plain", "\r\nlines\r\n", '{"not": "JSON"}', "\0"[:0] + "世界 🌍"])
@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.md", "a", "README", "a.v2", ".jsonl", "a.py"])
def test_text_is_one_document_in_any_compression(tmp_path: Path, name: str, text: str) -> None:
    for ending, write in {"": bytes, ".gz": gz, ".ZST": zst}.items():
        (tmp_path / (name + ending)).write_bytes(write(text.encode()))
        if name + ending not in (".jsonl.gz", ".jsonl.ZST"):
            (document,) = documents_from_files([str(tmp_path / (name + ending))])
            assert (document.text, document.source) == (text, str(tmp_path / (name + ending)))


def test_rows_keep_their_numbers(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": b'{"text": "a"}\n\n{"text": "b"}', "a.csv": b'text\n"a\nb"\n\nc\n'}.items():
        (tmp_path / name).write_bytes(content)
    sources = [document.source for document in documents_from_files([str(tmp_path / "a.*")])]
    assert sources == [f"{tmp_path}/{name}" for name in ("a.csv#0", "a.csv#1", "a.jsonl#0", "a.jsonl#2")]


DEEP = b"[" * 100_000
KEPT: dict[str, tuple[str, bytes, Rows]] = {
    "half a pair": ("a.jsonl", b'{"text": "x\\ud83d"}', ["x\ufffd"]),
    "halves in the wrong order": ("a.jsonl", b'{"text": "\\ude00\\ud83d"}', ["\ufffd\ufffd"]),
    "half a pair in an array": ("a.json", b'["\\ud83dx"]', ["\ufffdx"]),
    "a whole pair": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', ["😀"]),
    "half a pair in another column": ("a.jsonl", b'{"\\ud800": "\\udfff", "text": "x"}', ["x"]),
    "null": ("a.jsonl", b'{"text": null}\n{"text": "x"}', ["", "x"]),
    "infinite number": ("a.jsonl", b'{"n": 1e999, "m": -1e-999, "text": "x"}', ["x"]),
    "5,000 digits": ("a.jsonl", b'{"n": ' + b"9" * 5000 + b', "text": "x"}', ["x"]),
    "NaN": ("a.jsonl", b'{"n": [NaN, -Infinity], "text": "x"}', ["x"]),
    "the last of equal keys": ("a.jsonl", b'{"text": 3, "text": "x"}', ["x"]),
    "BOM and CRLF": ("a.jsonl", b'\xef\xbb\xbf{"text": "x\\r"}\r\n\r\n', ["x\r"]),
    "other white space": ("a.jsonl", b'\xc2\xa0\n{"text": "x"}\n\x0c\n', ["x"]),
    "one object": ("a.json", b'\n{\n "text": "x"\n}\n', ["x"]),
    "empty array": ("a.json", b" [ ] ", []),
    "empty": ("a.json", b"", []),
    "blank": ("a.jsonl", b"\n\n", []),
    "only names of columns": ("a.csv", b"id,text\n", []),
    "no content": ("a.csv", b"", []),
    "empty gz": ("a.jsonl.gz", b"", []),
    "long cell": ("a.csv", b"text\n" + b"x" * 200_000, ["x" * 200_000]),
    "null column": ("a.parquet", parquet([None, None]), ["", ""]),
    "nulls": ("a.parquet", parquet([None, "x"]), ["", "x"]),
    "no rows": ("a.parquet", parquet([], pyarrow.string()), []),
}


@pytest.mark.parametrize(("name", "content", "texts"), KEPT.values(), ids=KEPT)
def test_what_is_read_as_it_is_meant(tmp_path: Path, name: str, content: bytes, texts: Rows) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == texts


GOOD = b'{"text": "x"}\n'
BAD: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": ("a.txt", b"caf\xe9", "a.txt is not UTF-8 text: byte 0xe9 at position 3"),
    "not UTF-8 in gz": ("a.txt.gz", gz(b"caf\xe9"), "a.txt.gz is not UTF-8 text: byte 0xe9 at position 3"),
    "not UTF-8 in a line": ("a.jsonl", GOOD + b'{"\xff', "line 2 is not UTF-8 text: byte 0xff at position 2"),
    "not UTF-8 in an array": ("a.json", b'["a",\n"\xff"]', "line 2 is not UTF-8 text: byte 0xff"),
    "not UTF-8 in a table": ("a.csv", b"text\nx\n\xff\n", "line 3 is not UTF-8 text: byte 0xff at position 0"),
    "not UTF-8 in parquet": ("a.parquet", parquet([b"a", b"\xff"], pyarrow.binary()), "holds binary, not text"),
    "half a pair as bytes": ("a.jsonl", GOOD + b'{"text": "\xed\xa0\xbd"}', "line 2 is not UTF-8 text: byte 0xed"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "a.txt is UTF-16: convert it"),
    "UTF-16 lines": ("a.jsonl", GOOD.decode().encode("utf-16-be"), "holds binary data"),
    "binary": ("a.bin", b"\x7fELF\0\0", "a.bin holds binary data, not text"),
    "gz without its ending": ("a.jsonl", gz(GOOD), r"is compressed with gzip: let its name end in \.gz"),
    "zstd without its ending": ("a.txt", zst(GOOD), r"is compressed with zstd: let its name end in \.zst"),
    "zip": ("a.txt", b"PK\x03\x04\n", "is a zip archive or an office document: unpack it"),
    "PDF": ("a.txt", b"%PDF-1.7\n", "is a PDF: extract its text"),
    "parquet without its ending": ("a", parquet(["x"]), r"is parquet: let its name end in \.parquet"),
    "gz twice": ("a.jsonl.gz", gz(gz(GOOD)), "is compressed with gzip"),
    "not gz": ("a.txt.gz", b"text", "cannot decompress .*a.txt.gz: Not a gzipped file"),
    "gz cut off": ("a.jsonl.gz", gz(GOOD)[:-9], "cannot decompress .*a.jsonl.gz"),
    "zstd cut off": ("a.jsonl.zst", zst(GOOD)[:-3], "cannot decompress .*a.jsonl.zst: Truncated"),
    "not zstd": ("a.txt.zst", b"text", "cannot decompress .*a.txt.zst: ZSTD"),
    "broken JSON": ("a.jsonl", GOOD + b"{", "line 2 is not JSON: Expecting property name"),
    "cut off": ("a.jsonl", GOOD + b'{"text": "x', "line 2 is not JSON: Unterminated string"),
    "deep lines": ("a.jsonl", GOOD + DEEP, "line 2 is not JSON that can be read: it is nested too deeply"),
    "deep objects": ("a.jsonl", b'{"a":' * 100_000, "line 1 is not JSON that can be read"),
    "deep array": ("a.json", DEEP, "line 1 is not JSON that can be read: it is nested too deeply"),
    "two rows in a line": ("a.jsonl", GOOD.strip() * 2, "line 1 is not JSON: Extra data"),
    "a string as a line": ("a.jsonl", b'"text"', "line 1 has no column 'text', only str: rows must be objects"),
    "a list as a line": ("a.jsonl", b'["text"]', "line 1 has no column 'text', only list: rows must be objects"),
    "a number": ("a.json", b"3", "line 1 has no column 'text', only int"),
    "no column": ("a.jsonl", b'{"body": "x"}', "line 1 has no column 'text', only body: set data.column"),
    "strange columns": ("a.jsonl", b'{"\\ud800\\n": 1}', r"only '\\ud800\\n'\.\.\.: set data.column"),
    "many columns": ("a.jsonl", json.dumps({f"c{n}": 0 for n in range(999)}).encode(), r"c6, c7, \.\.\.: set"),
    "a number as text": ("a.jsonl", GOOD + b'{"text": 3}', "line 2: column 'text' holds int, not text"),
    "NaN as text": ("a.jsonl", b'{"text": NaN}', "line 1: column 'text' holds float, not text"),
    "a list as text": ("a.json", b'\n\n{"text": ["x"]}', "line 3: column 'text' holds list, not text"),
    "array without comma": ("a.json", b'["a"\n"b"]', "line 2 is not JSON: expected ',' or ']', not '\"'"),
    "array cut off": ("a.json", b'["a",\n"b"', "line 2 is not JSON: expected ',' or ']', not the end of the file"),
    "array with a comma too many": ("a.json", b'["a",]', "line 1 is not JSON: Expecting value"),
    "two arrays": ("a.json", b'["a"]\n["b"]', "line 2 is not JSON: there is something behind the array"),
    "broken array": ("a.json", b'[\n{"text" "x"}]', "line 2 is not JSON: Expecting ':' delimiter"),
    "JSON that is text": ("a.json", b"once upon a time", "line 1 is not JSON: Expecting value"),
    "no names of columns": ("a.csv", b"once upon\nx\n", "the first row, which names the columns, has no column 'text'"),
    "other columns": ("a.tsv", b"id,text\n1,x\n", "the first row, .* has no column 'text', only id,text"),
    "too few cells": ("a.csv", b'id,text\n1,"a\nb"\n2\n', "line 4 has 1 cells, but the first row 2"),
    "too many cells": ("a.csv", b"id,text\n1,x,y\n", "line 2 has 3 cells, but the first row 2"),
    "open quote": ("a.csv", b'text\n"x\n', "line 2 is not a row of a table: unexpected end of data"),
    "text behind a quote": ("a.csv", b'text\n"x"y\n', "line 2 is not a row of a table: ',' expected after '\"'"),
    "not parquet": ("a.parquet", b"text", "as parquet: it does not end as such a file does"),
    "empty parquet": ("a.parquet", b"", "as parquet"),
    "parquet cut off": ("a.parquet", parquet(["x"])[:-20], "as parquet"),
    "long footer": ("a.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1", "description of its columns has 2147483647 bytes"),
    "numbers in parquet": ("a.parquet", parquet([1, 2]), "column 'text' holds int64, not text"),
    "lists in parquet": ("a.parquet", parquet([["x"]]), "column 'text' holds list<.*>, not text"),
    "structs in parquet": ("a.parquet", parquet([{"text": "x"}]), "column 'text' holds struct<.*>, not text"),
    "parquet in gz": ("a.parquet.gz", gz(parquet(["x"])), "parquet files are compressed inside: unpack it"),
    "a file of the hub's cache": ("a.arrow", b"ARROW1", "name the folder of the saved data set"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("ending", REFUSED)
def test_other_formats_are_refused_by_name_before_anything_is_read(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    for name in (f"b{ending}", f"b{ending.upper()}", f"b{ending}.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=rf"{name}: files that end in {ending} are not read: "):
            document_files(str(tmp_path / "*"))
        (tmp_path / name).unlink()
    assert document_files(str(tmp_path / "*")) == [str(tmp_path / "a.txt")]


def test_the_documentation_has_every_ending_and_limit() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "documents.md").read_text()
    refused = [line for line in page.splitlines() if "| refused" in line]
    assert {f"`{ending}`" for ending in REFUSED} == {word for line in refused for word in named(line.split("|")[1])}
    read_rows = [
        line.split("|")[1] for line in page.splitlines() if line.startswith("| `.") and "| refused" not in line
    ]
    known = {*formats.TABLES, ".parquet"}
    assert {f"`{ending}`" for ending in known} == {word for cell in read_rows for word in named(cell)}
    sizes = {
        "a document": formats.LONGEST_DOCUMENT,
        "a line or a row": formats.LONGEST_LINE,
        "a page of a parquet column, decompressed": parquet_rows.LARGEST_PAGE,
        "what describes the columns of a parquet file": parquet_rows.LARGEST_FOOTER,
    }
    for what, size in sizes.items():
        assert f"| {what} | {size >> 20} MiB" in page
    assert f"{rows.MOST_VALUES:,} values" in page
    assert f"{formats.ALWAYS_EXPANDED >> 30} GiB, or {formats.MOST_EXPANDED} times its size" in page
    assert f"more than {tokens.LONG_TEXT:,} characters" in page
    assert f"may have {LARGEST_JSON >> 20} MiB" in page


def named(cell: str) -> list[str]:
    return re.findall("`[.][a-z0-9]+`", cell)


def test_a_submission_is_refused_for_what_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "b.PDF").write_bytes(b"%PDF")
    for pattern, message in {"*.txt": "fifo.txt is a pipe", "b.*": "files that end in .pdf are not read"}.items():
        spec = parse_spec({"model": "owner/name", "data": [str(tmp_path / pattern)], "target_length": 64})
        with pytest.raises(DataError, match=message):
            check_possible(spec)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a"])
def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DataError, match=f"{name} holds binary data|it does not end as such a file does"):
        read(tmp_path / name)


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits a thousandth of the true ones, which have tests of their own below."""
    monkeypatch.setattr(formats, "LONGEST_DOCUMENT", LONGEST_DOCUMENT >> 10)
    monkeypatch.setattr(rows, "LONGEST_DOCUMENT", LONGEST_DOCUMENT >> 10)
    monkeypatch.setattr(formats, "LONGEST_LINE", LONGEST_LINE >> 10)
    monkeypatch.setattr(rows, "LONGEST_LINE", LONGEST_LINE >> 10)
    monkeypatch.setattr(formats, "ALWAYS_EXPANDED", formats.ALWAYS_EXPANDED >> 10)
    monkeypatch.setattr(rows, "MOST_VALUES", rows.MOST_VALUES >> 10)
    monkeypatch.setattr(rows, "CHUNK", rows.CHUNK >> 10)
    monkeypatch.setattr(parquet_rows, "LARGEST_PAGE", parquet_rows.LARGEST_PAGE >> 10)
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", parquet_rows.BATCH_BYTES >> 10)


TEXT = b"a" * 2**18
ROW = b'{"text": "%s"}\n' % (b"b" * 2**10)
ENDLESS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "text": ("a.txt", lambda: TEXT, "is longer than .* MiB, the longest document: split it"),
    "text in zst": ("a.txt.zst", lambda: zst(TEXT * 99), "is longer than .* MiB, the longest document: split it"),
    "text in gz": ("a.gz", lambda: gz(TEXT * 99), "is longer than .* MiB, the longest document: split it"),
    "a line": ("a.jsonl", lambda: GOOD + TEXT * 2, "line 2 is longer than .* MiB, the most that is read as one row"),
    "a line in gz": ("a.jsonl.gz", lambda: gz(GOOD + TEXT * 2), "line 2 is longer than"),
    "a row in an array": ("a.json", lambda: b'["x",\n"' + TEXT * 2, "line 2 is longer than"),
    "a document": (
        "a.jsonl",
        lambda: b'{"text": "%s"}' % TEXT[: 2**17 + 1],
        "line 1 is longer than .* the longest doc",
    ),
    "values": ("a.jsonl", lambda: b"[" + b"[]," * 20_000, "line 1 has more than 16384 values"),
    "values in an array": ("a.json", lambda: b'["x",[' + b"[]," * 20_000, "line 1 has more than 16384 values"),
    "cells": ("a.csv", lambda: b'id,text\n1,"' + b"x\n" * 2**18, "is longer than"),
    "a cell": (
        "a.csv",
        lambda: b'id,text\n1,"' + TEXT[:-1],
        "line 2 is longer than .* the longest doc|not a row|longer",
    ),
    "blank lines in gz": ("a.jsonl.gz", lambda: gz(b"\n" * 2**21), "more than 200 times its size"),
    "rows in gz": ("a.jsonl.gz", lambda: gzip.compress(ROW * 2**12), "more than 200 times its size"),
    "rows in zst": ("a.jsonl.zst", lambda: zst(ROW * 2**12), "more than 200 times its size"),
    "a page": ("a.parquet", lambda: parquet(["x", "y" * 2**19], compression="zstd"), "row group 0 has a page of"),
    "a dictionary": (
        "a.parquet",
        lambda: parquet(["y" * 2**19] * 9, dictionary_pagesize_limit=2**20, row_group_size=3, compression="snappy"),
        "row group 0 has a page of",
    ),
}


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize(("name", "content", "message"), ENDLESS.values(), ids=ENDLESS)
def test_what_is_too_long_is_refused(tmp_path: Path, name: str, content: Callable[[], bytes], message: str) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert f"{tmp_path / name}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "write"),
    {
        "a.jsonl": json_lines,
        "a.json": lambda texts: json.dumps(texts).encode(),
        "a.csv": lambda texts: table(texts, ","),
        "a.jsonl.gz": lambda texts: gz(json_lines(texts)),
        "a.jsonl.zst": lambda texts: zst(json_lines(texts)),
    }.items(),
)
def test_memory_is_that_of_a_few_documents(tmp_path: Path, name: str, write: Callable[[Rows], bytes]) -> None:
    texts = [f"{n} {os.urandom(50_000).hex()}" for n in range(300)]
    (tmp_path / name).write_bytes(write(texts))
    tracemalloc.start()
    count = sum(len(text) > 10**5 for text in (one.text for one in documents_from_files([str(tmp_path / name)])))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 300
    assert peak < 6e6, "the file has 30 MB"


def test_parquet_batches_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of one long text that every row names: small as a file, and gigabytes as rows."""
    (tmp_path / "a.parquet").write_bytes(parquet(["y" * 2**20] * 200, dictionary_pagesize_limit=2**22))
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 2**22)
    before = pyarrow.total_allocated_bytes()
    largest = 0
    for document in documents_from_files([str(tmp_path / "a.parquet")]):
        assert len(document.text) == 2**20
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    assert largest < 2**25


def test_a_description_that_says_too_little_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in the file's description is 64 bits of thrift; pages say their own."""
    content = parquet(["y" * 2**20], use_dictionary=False, compression="zstd")
    size = pq.read_metadata(io.BytesIO(content)).row_group(0).column(1).total_uncompressed_size
    said = encoded(size)
    assert content.count(said) >= 1
    (tmp_path / "a.parquet").write_bytes(content[:200] + content[200:].replace(said, encoded(70, len(said))))
    told = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(1).total_uncompressed_size
    assert told == 70
    monkeypatch.setattr(parquet_rows, "LARGEST_PAGE", 2**19)
    with pytest.raises(DataError, match="row group 0 has a page of 1 MiB in column 'text'"):
        read(tmp_path / "a.parquet")


def encoded(number: int, length: int = 0) -> bytes:
    """A whole number in thrift's compact protocol, stretched to a length."""
    number, parts = 2 * number, []
    while number >= 128 or len(parts) + 1 < length:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_give_one_clear_error_or_texts(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    content = bytearray(FORMATS[name](["one text", "another\ntext", "the third, 世界"]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif at:
            del content[at:]
    file = tmp_path_factory.mktemp("damaged") / name
    file.write_bytes(content)
    message = f"{file}: read"
    try:
        texts = read(file)
    except DataError as error:
        texts, message = [], str(error)
    assert str(file) in message
    assert "\n" not in message
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_values_behind_a_long_one_take_no_longer(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are not counted with it; nor are marks in its text."""
    monkeypatch.setattr("factor_search.text.rows.MOST_VALUES", 2**12)
    monkeypatch.setattr("factor_search.text.rows.CHUNK", 2**10)
    texts = ['long, \\"' * 2**17, *["short"] * 20_000, "long " * 2**17, *["x"] * 9]
    (tmp_path / name).write_text("\n".join(json.dumps({"text": text, "more": [[], {}]}) for text in texts))
    began = time.monotonic()
    assert [one.text for one in documents_from_files([str(tmp_path / name)])] == texts
    assert time.monotonic() - began < 5
    (tmp_path / name).write_text(json.dumps({"text": "a", "more": [1] * 2**13}))
    with pytest.raises(DataError, match="more than 4096 values"):
        list(documents_from_files([str(tmp_path / name)]))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        read(tmp_path / "*.txt")
    with pytest.raises(DataError, match="is a folder: name its files"):
        read(tmp_path)
    (tmp_path / "lost.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot read .*lost.txt: No such file"):
        read(tmp_path / "*.txt")


def test_a_file_name_that_is_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(name).write_text("x" * 200)
    (document,) = documents_from_files([str(tmp_path / "*.txt")])
    assert document.source.encode() == os.fsencode(tmp_path) + b"/caf\\xe9.txt"
