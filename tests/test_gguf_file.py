"""Headers of GGUF files: copies are exact, and broken files are named in one line."""

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from bench.gguf_writer import Q4_1, write_model
from factor_search.errors import FactorSearchError, ModelLoadError, OutputError
from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.files import gguf as files
from factor_search.files.gguf import (
    ARRAY,
    UINT32,
    Entry,
    Header,
    Tensor,
    number_entry,
    read_header,
    text_entry,
    write_gguf,
)
from factor_search.model.loading import load_config
from factor_search.spec import ModelSpec
from tests.families import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "m.gguf", tiny_model("llama", vocab_size=257), quantised=Q4_1)


def test_a_copy_is_the_same_file(tiny: Path, tmp_path: Path) -> None:
    header = read_header(tiny)
    write_gguf(header, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == tiny.read_bytes()
    assert header.get("{arch}.context_length") == header.get("llama.context_length") == 64
    assert header.get("{arch}.absent", 7) == 7


def test_the_header_is_what_the_gguf_package_reads(tiny: Path) -> None:
    ours, theirs = read_header(tiny), gguf.GGUFReader(tiny)
    assert [key for key in theirs.fields if not key.startswith("GGUF.")] == list(ours.metadata)
    for key, entry in ours.metadata.items():
        if entry.value is not None:
            value = theirs.fields[key].contents()
            assert (tuple(value) if isinstance(value, list) else value) == entry.value
    assert len(ours.tensors) == len(theirs.tensors) > 20
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.shape, mine.kind) == (other.name, tuple(other.shape.tolist()), int(other.tensor_type))
        assert b"".join(mine.pieces()) == other.data.tobytes()


def test_a_header_is_read_once_by_whatever_link(tiny: Path, tmp_path: Path) -> None:
    files._read.cache_clear()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(tiny)
        header = read_header(tmp_path / name)
        assert {header.file, *(tensor.source for tensor in header.tensors)} == {tmp_path / name}
    assert files._read.cache_info().misses == 1


def test_another_alignment_is_kept(tiny: Path, tmp_path: Path) -> None:
    header = read_header(tiny)
    aligned = replace(header, metadata={**header.metadata, "general.alignment": number_entry(256, UINT32)})
    write_gguf(aligned, tmp_path / "aligned.gguf")
    again = read_header(tmp_path / "aligned.gguf")
    assert {tensor.start % 256 for tensor in again.tensors} == {0}
    assert {tensor.start % 256 for tensor in header.tensors} != {0}
    assert [b"".join(tensor.pieces()) for tensor in again.tensors] == [b"".join(t.pieces()) for t in header.tensors]
    assert len(gguf.GGUFReader(tmp_path / "aligned.gguf").tensors) == len(header.tensors)


def test_a_file_cut_anywhere_is_one_line(tiny: Path, tmp_path: Path) -> None:
    content, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    data = min(tensor.start for tensor in read_header(tiny).tensors)
    for size in [*range(0, data, 37), data, data + 1, len(content) - 1000]:
        cut.write_bytes(content[:size])
        files._read.cache_clear()
        with pytest.raises(ModelLoadError, match=r"empty|not a GGUF file|ends within its header|not complete") as error:
            read_header(cut)
        assert "\n" not in str(error.value)
        assert str(cut) in str(error.value)


def test_a_file_with_any_wrong_byte_gives_no_traceback(tiny: Path, tmp_path: Path) -> None:
    content, wrong, refused = bytearray(tiny.read_bytes()), tmp_path / "wrong.gguf", []
    data = min(tensor.start for tensor in read_header(tiny).tensors)
    vocabulary = range(content.index(b"tokenizer.ggml.tokens") + 100, content.index(b"tokenizer.ggml.token_type") - 20)
    model = FactorsModel(
        id="m", architecture="L", rope_theta=10_000, rotary_dim=16, original_length=64, base_rope_type="default"
    )
    source = Source(factors_file(Factors.of([1.5] * 8), model, 128), ModelSpec(id=str(wrong)))
    out = tmp_path / "out.gguf"
    for place in (place for place in range(4, data, 11) if place not in vocabulary):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        wrong.write_bytes(damaged)
        files._read.cache_clear()
        for use in (lambda: load_config(source.model), lambda: export("gguf", source, out)):
            try:
                use()
            except FactorSearchError as error:
                refused.append(str(error))
        out.unlink(missing_ok=True)
    assert len(refused) > 100
    assert "\n" not in "".join(refused)


def changed(header: Header, **entries: Entry) -> Header:
    names = {
        "parts": "split.count",
        "architecture": "general.architecture",
        "alignment": "general.alignment",
        "nested": "tokenizer.nested",
    }
    return replace(header, metadata={**header.metadata, **{names[key]: entry for key, entry in entries.items()}})


NESTED = struct.pack("<IQ", ARRAY, 1) * 5000
"""Arrays of one array, which would be read 5,000 calls deep."""


def array_entry(inner: int, count: int) -> Entry:
    raw = struct.pack(f"<IIQ{count}I", ARRAY, inner, count, *range(count))
    return Entry(ARRAY, 32, raw)  # the writer takes an alignment from the value


def test_what_is_not_a_model(tiny: Path, tmp_path: Path) -> None:
    header, file = read_header(tiny), tmp_path / "m.gguf"
    with pytest.raises(ModelLoadError, match="there is no GGUF file"):
        read_header(file)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelLoadError, match="is a folder"):
        read_header(tmp_path / "folder.gguf")
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_header(Path("x\0.gguf"))
    for content, reason in (
        (b"", "is empty"),
        (b"PK\3\4 a zip file", "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "has version 1 of the format"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "damaged: 'general.architecture'"),
    ):
        file.write_bytes(content)
        files._read.cache_clear()
        with pytest.raises(ModelLoadError, match=reason):
            read_header(file)
    for wrong, reason in (
        (changed(header, parts=number_entry(3, UINT32)), "one of 3 parts of a model: merge them"),
        (replace(header, tensors=()), "a vocabulary and no weights"),
        (replace(header, tensors=(Tensor("t", (4,), 9999, 0, b""),)), "tensor type 9999"),
        (replace(header, tensors=(header.tensors[0],) * 2), "two tensors of the same name"),
        (changed(header, architecture=number_entry(1, UINT32)), "is not a text"),
        (changed(header, parts=array_entry(UINT32, 2)), "split.count is not a whole number"),
        (changed(header, alignment=array_entry(UINT32, 2)), "general.alignment is not a positive whole number"),
        (changed(header, alignment=text_entry("32")), "general.alignment is not a positive whole number"),
        (changed(header, nested=array_entry(ARRAY, 0)), "damaged: it has an array of values of type 9"),
        (changed(header, nested=Entry(ARRAY, None, struct.pack("<I", ARRAY) + NESTED)), "damaged: it has an array"),
    ):
        write_gguf(wrong, file)
        files._read.cache_clear()
        with pytest.raises(ModelLoadError, match=reason):
            read_header(file)
        with pytest.raises(ModelLoadError) as error:
            load_config(ModelSpec(id=str(file)))
        assert "\n" not in str(error.value)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    header = read_header(tiny)
    gone = replace(header, tensors=(*header.tensors, replace(header.tensors[0], name="t", source=tmp_path / "gone")))
    with pytest.raises(OutputError, match=r"cannot write .*: No such file"):
        write_gguf(gone, tmp_path / "out.gguf")
    with pytest.raises(OutputError, match="cannot write"):
        write_gguf(header, tmp_path / "absent" / "out.gguf")
    assert not list(tmp_path.iterdir())
    write_gguf(changed(header, architecture=text_entry("llama")), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == tiny.read_bytes()
