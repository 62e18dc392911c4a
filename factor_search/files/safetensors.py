"""Reads the header of safetensors files and checks it, so that a damaged file is named before anything is loaded.

The format is 8 bytes with the size of the header, the header as JSON, and the data of the tensors without gaps:
https://github.com/huggingface/safetensors#format.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factor_search.errors import ModelLoadError

LARGEST_HEADER = 25 * 2**20
"""Bytes; 100,000 tensors need 10 MB."""
BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one number of each type."""


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, whose data are not read.

    Raises:
        ModelLoadError: the file is not there or its header is damaged; names the file and the tensor.
    """
    try:
        if not file.is_file():
            raise ModelLoadError(f"there is no file {file} with weights, or it is not a regular file")
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header = int.from_bytes(stream.read(8), "little")
            if size < 8 or header > min(LARGEST_HEADER, size - 8):
                raise ModelLoadError(
                    f"{file} is not a safetensors file, or ends within its header: it has {size} bytes, and says that "
                    f"its header has {header}; download it again"
                )
            content = json.loads(stream.read(header))
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ModelLoadError(f"the header of {file} is not JSON: download it again") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"the header of {file} is not a JSON object: download it again")
    tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        fault = _fault(entry)
        if fault is not None:
            raise ModelLoadError(f"{file}: tensor {name:.100} has {fault}: the header is damaged; download it again")
    _check_places(file, tensors, size - 8 - header)
    return {name: tuple(entry["shape"]) for name, entry in tensors.items()}


def _check_places(file: Path, tensors: Mapping[str, Any], size: int) -> None:
    """Check that the data of tensors follow one another and are all there, as the format says."""
    end = 0
    for start, stop, name in sorted((*entry["data_offsets"], name) for name, entry in tensors.items()):
        if start != end:
            what = "overlap those of another tensor" if start < end else "leave a gap before them"
            raise ModelLoadError(f"{file}: the data_offsets of tensor {name:.100} {what}: download it again")
        end = stop
    if end != size:
        raise ModelLoadError(f"{file} is not complete: it has {size} bytes of data, not {end}; download it again")


def _fault(entry: Any) -> str | None:
    """What is wrong with the description of a tensor, or None."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "no dtype, shape and data_offsets"
    bits = BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        return f"the dtype {entry['dtype']!r:.40}, which is not known"
    if not _whole(entry["shape"]):
        return f"the shape {entry['shape']!r:.40}, which is not a list of sizes"
    if not _whole(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        return f"the data_offsets {entry['data_offsets']!r:.40}, which are not two numbers of bytes"
    start, stop = entry["data_offsets"]
    if (stop - start) * 8 != math.prod(entry["shape"]) * bits:
        return (
            f"{stop - start} bytes, which are not those of its shape {entry['shape']!r:.40} and dtype {entry['dtype']}"
        )
    return None


def _whole(values: Any) -> bool:
    """Whether it is a list of numbers that may be sizes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)
