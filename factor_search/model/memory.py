"""Estimates and measures the memory of a worker, and says how much there is.

On a CPU all figures are of the whole process, as limits of containers are. On a GPU they are of the device alone.
"""

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_search.model.losses import (
    LEAST_TOKENS,
    LOSS_BLOCK,
    MANY_TOKENS,
    REUSED_BYTES,
    TOKENS_PER_PASS_ON_GPU,
    rows_per_pass,
)
from factor_search.model.size import ModelSize

PROCESS_BYTES = 440 * 2**20
"""Python with torch, transformers and the code of a model, before any weight (``python -m bench.estimates``)."""
DEVICE_BYTES = 64 * 2**20
"""On a GPU: the workspaces of its libraries. Its context is no allocation, and not counted as free either."""
MARGIN = 1.25
"""Estimates are about 15 % off, so only what needs this many times the memory that there is counts as too large."""
TRAINED_BYTES = 16
"""Of a trained number: weight, gradient and two moments of AdamW, each float32."""
HEAP = 1.15
"""Memory of the C library's heap for each byte in use, once freed blocks are kept (``python -m bench.estimates``)."""
CHUNK_LOGITS = 2**26
"""Logits in memory at once in training; as in :mod:`factor_search.finetune.gradients`."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a worker needs."""

    process: int
    """Of the libraries."""
    weights: int
    loading: int
    """At most while the weights are loaded."""
    activations: int

    @property
    def loaded(self) -> int:
        """The most until the model is loaded, whatever is done with it then."""
        return self.process + max(self.loading, self.weights)

    @property
    def peak(self) -> int:
        """The most at any time: memory that loading has freed is used again."""
        return self.process + max(self.loading, self.weights + self.activations)


def evaluation_memory(size: ModelSize, tokens: int, *, rows: int = 1, device: str = "cpu") -> Memory:
    """Estimate the memory of an evaluation.

    Weights are mapped from the file where it has their precision. Otherwise the numbers of the file and the converted
    ones are in memory at once; the reader of GGUF files makes float32 copies of all weights first (4 bytes each).

    Args:
        size: of the model.
        tokens: of a window.
        rows: windows of a pass.
        device: kind of device.
    """
    weights = size.parameters * size.bytes_each
    loading = weights
    if device == "cpu" and size.stored == "gguf":
        loading = max(4 * size.parameters, weights)
    elif device == "cpu" and size.stored != size.dtype:
        loading = weights + size.parameters * _bytes(size.stored)
    return Memory(
        process=PROCESS_BYTES if device == "cpu" else DEVICE_BYTES,
        weights=weights,
        loading=loading,
        activations=round(_activations(size, tokens, rows, device)),
    )


def training_memory(
    size: ModelSize, tokens: int, rows: int, *, trained: float = 1.0, recomputed: bool = False, device: str = "cpu"
) -> Memory:
    """Estimate the memory of a fine-tuning.

    A trained number takes 16 bytes: float32 of weight, gradient and the two moments of AdamW (2305.14314, sec. 2). For
    the backward pass each layer keeps, for a token, its inputs and the outputs of its matrices: about
    6 h + 4 I + 4 x (queries and keys); with recomputation, its input alone and one layer's all.

    Args:
        size: of the model.
        tokens: of a sequence.
        rows: sequences of a pass.
        trained: share of the weights that are trained.
        recomputed: whether activations are computed again in the backward pass.
        device: kind of device.
    """
    each = 4
    layers = sum(one.layers for one in size.attention) or 1
    widest = max((one.heads + one.key_heads) * one.key_width for one in size.attention) if size.attention else 0
    layer = each * (6 * size.hidden + 4 * size.inner + 4 * widest)
    kept = layer * layers if not recomputed else layer + each * size.hidden * layers
    logits = min(CHUNK_LOGITS, tokens * rows * size.vocabulary) * each * 3
    weights = round(size.parameters * (trained * TRAINED_BYTES + (1 - trained) * each))
    return Memory(
        process=PROCESS_BYTES if device == "cpu" else DEVICE_BYTES,
        weights=weights,
        loading=size.parameters * (each + _bytes(size.stored)),
        activations=round(kept * tokens * rows + _scores(size, tokens) * rows * layers * (not recomputed) + logits),
    )


def _activations(size: ModelSize, tokens: int, rows: int, device: str) -> float:
    """Bytes of the largest intermediate results of one layer, and of a chunk of logits.

    b bytes a number, widths h (hidden), I (after attention), q and k (all queries, all keys):

    * after attention: residual, its norm, gate, up and their product: b (2 h + 3 I) for a token;
    * attention: residual, norm, queries before and after rotation with its two products, and keys and values before
      and after they are repeated for the heads of a group: b (2 h + 4 q + 2 k) or b (2 h + 2 q + 2 q + 2 k);
    * norms: the residual, and two copies in float32: b h + 8 h;
    * ``eager``: all scores of tokens with tokens, also in float32 for the softmax;
    * logits: see :mod:`factor_search.model.losses`. On a CPU they come on top of a layer, since blocks of one size that
      were freed are seldom used again for those of another.
    """
    b, h = size.bytes_each, size.hidden
    heads = [(one.heads * one.key_width, one.key_heads * one.key_width) for one in size.attention]
    attention = max((b * (2 * h + 4 * q + 2 * k) for q, k in heads), default=0)
    a_token = max(b * (2 * h + 3 * size.inner), attention, b * h + 8 * h)
    chunk = REUSED_BYTES // (4 * size.vocabulary) // 32 * 32
    scored = min(chunk if chunk >= LEAST_TOKENS else MANY_TOKENS, tokens * rows)
    block = min(LOSS_BLOCK if device == "cpu" else scored * size.vocabulary, scored * size.vocabulary)
    logits = scored * size.vocabulary * b + 3 * 4 * block
    layer, head = a_token * tokens * rows + _scores(size, tokens) * rows, b * h * tokens * rows + logits
    return HEAP * (layer + logits) if device == "cpu" else max(layer, head)


def _scores(size: ModelSize, tokens: int) -> float:
    """Bytes of what grows with the square of the tokens."""
    b = size.bytes_each
    if size.kernel == "eager":
        heads = max((one.heads for one in size.attention), default=0)
        return float(tokens) * tokens * (heads * (2 * b + 4) + b)
    masked = any(one.window is not None and one.window < tokens for one in size.attention)
    return float(tokens) * tokens * (1 + b) if masked and size.kernel == "sdpa" else 0.0


def largest_length(size: ModelSize, available: int, below: int, *, device: str = "cpu") -> int | None:
    """Return the longest window that fits, as they are evaluated there; None if none does.

    Memory grows with the length as long as as many windows are evaluated at once, so each such range is looked at.

    Args:
        size: of the model.
        available: bytes.
        below: tokens than which it is shorter.
        device: kind of device.
    """

    def fits(tokens: int) -> bool:
        needed = evaluation_memory(size, tokens, rows=rows_per_pass(tokens, device), device=device)
        return needed.peak <= available

    high = below - 1
    while high > 0:
        low = 1 if device == "cpu" else TOKENS_PER_PASS_ON_GPU // (rows_per_pass(high, device) + 1) + 1
        if fits(low):
            return high if fits(high) else _last(fits, low, high)
        high = low - 1
    return None


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last that fits, within half a percent, between one that does and one that does not."""
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def available_bytes(device: str = "cpu") -> int | None:
    """Return the memory that a process here can use in all, its own included; None if it is not known.

    On a CPU it is what the kernel calls available, within the limits of the control groups that the process is in. On a
    GPU it is what is free there, and what the process has.
    """
    if device.startswith("cuda"):
        import torch

        with contextlib.suppress(RuntimeError, AssertionError):
            free, _ = torch.cuda.mem_get_info(torch.device(device))
            return int(free) + torch.cuda.memory_reserved(torch.device(device))
        return None
    if device != "cpu":
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return min([free + resident_bytes(), *_limits()])
    return None


def _limits() -> Iterator[int]:
    """What the control groups (version 2, else 1) of this process still allow, its own memory included."""
    own = resident_bytes()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        root = Path("/sys/fs/cgroup") if not kinds else Path("/sys/fs/cgroup/memory")
        limit_name, used_name = (
            ("memory.max", "memory.current")
            if not kinds
            else (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        )
        folder = root / path.lstrip("/")
        for one in [folder, *folder.parents]:
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((one / name).read_text()) for name in (limit_name, used_name))
                yield max(limit - max(used - _reclaimable(one), own) + own, 0)
            if one == root:
                break


def _reclaimable(group: Path) -> int:
    """Bytes of files in memory that the kernel gives up when they are needed."""
    lines = (group / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))


def resident_bytes() -> int:
    """Return the memory of this process now; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


class PeakMemory:
    """Measures the most memory that was used since it was begun."""

    def __init__(self, device: Any = None) -> None:
        """Begin.

        Args:
            device: a torch device; None is the CPU.
        """
        self._device = device if device is not None and device.type == "cuda" else None
        if self._device is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark; else it is of the process

    def bytes(self) -> int | None:
        """Return it; None where the system does not tell."""
        if self._device is not None:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bytes(dtype: str) -> int:
    if dtype == "gguf":
        return 4
    import torch

    found = getattr(torch, dtype, None)
    return found.itemsize if isinstance(found, torch.dtype) else 4
