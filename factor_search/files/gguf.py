"""Reads the header of GGUF files, and writes files with another header around the same tensor data.

A GGUF file is a magic number and counts, metadata (keys with typed values), a table of tensors, and their data. See
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package builds a Python object of every word of
the vocabulary, which takes seconds, and its writer packs every value anew. Here metadata that do not change are copied
byte by byte, and tensor data are never read into memory as a whole.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factor_search.errors import ModelLoadError
from factor_search.files.atomic import cannot_write, replacing
from factor_search.files.regular import require_regular

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The letters of :mod:`struct` by the type of a value."""
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
F32, F16 = 0, 1
"""Tensor types."""
DIMENSIONS = 4
CHUNK = 16 * 2**20
"""Bytes that are copied at a time."""
MOST_VALUES = 2**22
"""In an array; the largest vocabularies have 2^18 words, and twice as many merges."""
MOST_ROWS = 2**17
"""Of keys, and of tensors."""
LARGEST_HEADER = 2**28
"""Bytes."""


@dataclass(frozen=True)
class Entry:
    """One value of the metadata."""

    kind: int
    """The type of the value."""
    value: Any
    """A number, a text, or a tuple of numbers; None for arrays of texts, such as the vocabulary."""
    raw: bytes
    """The type and the value as they stand in a file."""


@dataclass(frozen=True)
class Tensor:
    """One row of the table of tensors, and where its data come from."""

    name: str
    shape: tuple[int, ...]
    """Sizes with the contiguous dimension first, as in the file."""
    kind: int
    """The tensor type: F32, F16, Q4_1, ..."""
    size: int
    """Bytes."""
    source: Path | bytes
    """The file with the data, or the data."""
    start: int = 0
    """Where the data start in the source."""
    rows: tuple[int, ...] | None = None
    """The order in which rows are read; None is their own."""

    def pieces(self) -> Iterator[bytes]:
        """The data, piece by piece."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        with self.source.open("rb") as stream:
            stream.seek(self.start)
            left = self.size
            while left:
                piece = stream.read(left if self.rows else min(left, CHUNK))
                if not piece:
                    raise OSError(f"{self.source} became shorter")
                yield self._permuted(piece) if self.rows else piece
                left -= len(piece)

    def floats(self) -> NDArray[np.float32]:
        """The data of an F32 or F16 tensor, as float32 of shape (elements,).

        Raises:
            ValueError: it has another type.
        """
        if self.kind not in (F32, F16):
            raise ValueError(f"{self.name} has tensor type {self.kind}, not F32")
        return np.frombuffer(b"".join(self.pieces()), "<f4" if self.kind == F32 else "<f2").astype(np.float32)

    def _permuted(self, data: bytes) -> bytes:
        rows = np.frombuffer(data, np.uint8).reshape(len(self.rows or ()), -1)
        return rows[list(self.rows or ())].tobytes()


@dataclass(frozen=True)
class Header:
    """Everything in a GGUF file but the data."""

    file: Path
    version: int
    metadata: Mapping[str, Entry]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """``llama``, ``qwen2``, ``phi3``, ..."""
        return str(self.metadata["general.architecture"].value)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata; ``{arch}`` in a key stands for the architecture."""
        entry = self.metadata.get(key.format(arch=self.architecture))
        return default if entry is None else entry.value

    def tensor(self, name: str) -> Tensor | None:
        """A tensor by its name."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def is_gguf(model_id: str) -> bool:
    """Whether a model's id is the path of a GGUF file."""
    return model_id.lower().endswith(".gguf")


def read_header(file: Path) -> Header:
    """Read the header of a whole model, and check that the file holds all its tensors.

    Raises:
        ModelLoadError: there is no such file, it is not a GGUF file, it is not complete, or it is one part of several.
    """
    try:
        status = file.stat()
        if file.is_dir():
            raise ModelLoadError(f"{file} is a folder: a model whose name ends in .gguf must be a GGUF file")
        require_regular(file, ModelLoadError)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        header = _read(_Opened(file.absolute(), file.resolve(), identity))
        if header.file == file.absolute():
            return header
        tensors = tuple(replace(tensor, source=file.absolute()) for tensor in header.tensors)
        return replace(header, file=file.absolute(), tensors=tensors)
    except FileNotFoundError:
        raise ModelLoadError(f"there is no GGUF file {file}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ModelLoadError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True)
class _Opened:
    """A file to read; equal to one of another name if it is the same file, unchanged."""

    file: Path = field(compare=False)
    resolved: Path
    status: tuple[int, ...]
    """Device, inode, size, and times of modification and change."""


@lru_cache(maxsize=4)
def _read(opened: _Opened) -> Header:
    file, size = opened.file, opened.status[2]
    if not size:
        raise ModelLoadError(f"{file} is empty: download it again")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != MAGIC:
            raise ModelLoadError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
        try:
            header = _Parser(content, file).header()
        except (struct.error, IndexError, OverflowError, MemoryError):
            raise ModelLoadError(f"{file} ends within its header: download it again") from None
        except (UnicodeDecodeError, KeyError, ValueError) as error:
            raise ModelLoadError(f"the header of {file} is damaged: {error}") from None
    _check_whole(header)
    if not header.tensors:
        raise ModelLoadError(f"{file} holds a vocabulary and no weights: give the GGUF file of a whole model")
    end = max(tensor.start + tensor.size for tensor in header.tensors)
    if end > size:
        raise ModelLoadError(f"{file} is not complete: it has {size} bytes of {end}; download it again")
    return header


def _check_whole(header: Header) -> None:
    """Refuse what is only a part of a model.

    Raises:
        ModelLoadError: says what the file is, and what to give.
    """
    file, kind, parts = header.file, header.get("general.type"), header.get("split.count", 1)
    if kind == "adapter":
        raise ModelLoadError(
            f"{file} holds an adapter (LoRA), not a model: merge it into its model with llama-export-lora, and give "
            "what that writes"
        )
    if kind == "mmproj" or header.architecture == "clip":
        raise ModelLoadError(f"{file} holds the part of a model that reads images: give the file of its language model")
    if not isinstance(parts, int):
        raise ModelLoadError(f"the header of {file} is damaged: split.count is not a whole number")
    if parts > 1:
        raise ModelLoadError(
            f"{file} is one of {parts} parts of a model: merge them first, with llama-gguf-split --merge"
        )


class _Parser:
    """Walks through a header once."""

    def __init__(self, content: mmap.mmap, file: Path) -> None:
        self.content, self.file, self.place = content, file, 4

    def header(self) -> Header:
        version = self.number("I")
        if version not in VERSIONS:
            swapped = version.to_bytes(4, "little") in (known.to_bytes(4, "big") for known in VERSIONS)
            what = "is big-endian" if swapped else f"has version {version} of the format"
            raise ModelLoadError(f"{self.file} {what}: only little-endian files of versions 2 and 3 can be read")
        tensors, entries = self.number("Q"), self.number("Q")
        if max(tensors, entries) > MOST_ROWS:
            raise ValueError(f"it says that it has {tensors} tensors and {entries} keys, more than {MOST_ROWS}")
        metadata: dict[str, Entry] = {}
        for _ in range(entries):
            key = self.text()
            if key in metadata:
                raise ValueError(f"it has {key} twice")
            metadata[key] = self.entry()
        if not isinstance(metadata["general.architecture"].value, str):
            raise ValueError("general.architecture is not a text")
        table = [self.tensor() for _ in range(tensors)]
        if len({tensor.name for tensor in table}) < len(table):
            raise ValueError("it has two tensors of the same name")
        alignment = metadata["general.alignment"].value if "general.alignment" in metadata else 32
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError("general.alignment is not a positive whole number")
        data = padded(self.place, alignment)
        placed = tuple(replace(tensor, start=data + tensor.start) for tensor in table)
        return Header(self.file, version, metadata, placed)

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.content, self.place)
        self.place += struct.calcsize(f"<{letter}")
        return value

    def piece(self) -> bytes:
        size = self.number("Q")
        if self.place + size > len(self.content):
            raise IndexError
        if self.place + size > LARGEST_HEADER:
            raise ValueError(f"its header has more than {LARGEST_HEADER // 2**20} MiB")
        self.place += size
        return self.content[self.place - size : self.place]

    def text(self) -> str:
        return self.piece().decode()

    def entry(self) -> Entry:
        start = self.place
        kind = self.number("I")
        value = self.value(kind)
        return Entry(kind, value, self.content[start : self.place])

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, count = self.number("I"), self.number("Q")
        if count > MOST_VALUES:
            raise ValueError(f"it has an array of {count} values, more than {MOST_VALUES}")
        if inner in SCALARS:
            letters = f"<{count}{SCALARS[inner]}"
            values = struct.unpack_from(letters, self.content, self.place)
            self.place += struct.calcsize(letters)
            return values
        if inner != STRING:  # llama.cpp reads no arrays of arrays either
            raise ValueError(f"it has an array of values of type {inner}")
        for _ in range(count):
            self.piece()
        return None

    def tensor(self) -> Tensor:
        name, dimensions = self.text(), self.number("I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, start = self.number("I"), self.number("Q")
        return Tensor(name, shape, kind, _bytes_of(name, shape, kind), self.file, start)


def _bytes_of(name: str, shape: Sequence[int], kind: int) -> int:
    """The size of a tensor in bytes.

    Raises:
        ModelLoadError: the package ``gguf`` is not installed.
        ValueError: it does not know the tensor type.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise ModelLoadError("GGUF files need the package gguf: pip install 'factor-search[gguf]'") from None
    try:
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        raise ValueError(
            f"{name} has tensor type {kind}, which this version of the package gguf does not know"
        ) from None
    count = 1
    for length in shape:
        count *= length
    return count // elements * size


def padded(size: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // alignment) * alignment


def number_entry(value: float, kind: int) -> Entry:
    """An entry of a numeric type."""
    return Entry(kind, value, struct.pack(f"<I{SCALARS[kind]}", kind, value))


def text_entry(value: str) -> Entry:
    """An entry with a text."""
    return Entry(STRING, value, struct.pack("<I", STRING) + _text(value))


def _text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def f32_tensor(name: str, values: Sequence[float]) -> Tensor:
    """A tensor of one dimension and type F32."""
    data = np.asarray(values, "<f4").tobytes()
    return Tensor(name, (len(values),), F32, len(data), data)


def write_gguf(header: Header, out: Path) -> None:
    """Write a file with this metadata and these tensors in their order, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    alignment = int(header.get("general.alignment", 32))
    pieces = [MAGIC, struct.pack("<IQQ", header.version, len(header.tensors), len(header.metadata))]
    for key, entry in header.metadata.items():
        pieces += [_text(key), entry.raw]
    place = 0
    for tensor in header.tensors:
        pieces += [_text(tensor.name), struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)]
        pieces.append(struct.pack("<IQ", tensor.kind, place))
        place += padded(tensor.size, alignment)
    beginning = b"".join(pieces)
    try:
        with replacing(out) as stream:
            stream.write(beginning.ljust(padded(len(beginning), alignment), b"\0"))
            for tensor in header.tensors:
                for piece in tensor.pieces():
                    stream.write(piece)
                stream.write(bytes(padded(tensor.size, alignment) - tensor.size))
    except OSError as error:
        raise cannot_write(out, error) from None
