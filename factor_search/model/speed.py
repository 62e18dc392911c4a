"""How fast a device computes with a model: measured in seconds by short forward passes, and kept in the cache."""

import copy
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers import __version__ as transformers_version

from factor_search.errors import FactorSearchError
from factor_search.files.atomic import write_atomically
from factor_search.files.cache import cache_folder
from factor_search.files.canonical_json import canonical_json, sha256_of
from factor_search.files.json_documents import read_json
from factor_search.model.losses import token_losses
from factor_search.model.memory import available_bytes
from factor_search.model.size import ModelSize, Operations, build_on_meta, model_size
from factor_search.spec import ModelSpec

KIND = "speeds"
"""Of what is in the cache."""
PASS_SECONDS = 4.0
"""The longest pass of a calibration takes about so long, or is of the length that is asked for."""
SHORTEST, REPEATS = 64, 3
"""Tokens of the shortest pass, and passes of each length, of which the median counts."""
LEAST_SHARE = 0.3
"""Of a processor that a calibration must have had, or else its speed is not kept for later."""
CLOCK = time.perf_counter
"""Seconds since some moment; benchmarks put another in its place."""
RANDOM_BYTES = 2**31
"""Largest random model that stands for one whose weights are not at hand; of a larger one, a few layers do."""
ASSUMED_CPU, ASSUMED_GPU = 4e10, 1e14
"""Operations per second of one thread, and of a GPU, where nothing was measured: right within a factor of five."""
TRAINING = 3.0
"""A forward and a backward pass take three times the operations of a forward pass (2001.08361, sec. 2.1)."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How many operations a device does in a second."""

    device: str
    """Kind of device and, of a CPU, its threads: ``cpu, 2 threads``."""
    linear: float
    """Of matrices."""
    attention: float
    """Of tokens with tokens."""
    source: str
    """``measured``, ``recorded`` by a worker, ``earlier`` (of a finished job) or ``assumed``."""
    length: int | None = None
    """Tokens of the longest pass that was measured."""

    @property
    def calibrated(self) -> bool:
        """Whether it was measured on a device of this kind."""
        return self.source in ("measured", "recorded")

    def seconds(self, operations: Operations) -> float:
        """Return the seconds that operations take."""
        return operations.linear / self.linear + operations.attention / self.attention

    def as_json(self) -> dict[str, Any]:
        """Return a JSON document, which :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any, **changes: Any) -> "Speed | None":
        """Return the speed in a document; None if it is none."""
        try:
            speed = cls(**{name: document[name] for name in cls.__dataclass_fields__} | changes)
            fine = all(math.isfinite(value) and value > 0 for value in (speed.linear, speed.attention))
            return speed if fine else None
        except (TypeError, KeyError, ValueError):
            return None


def assumed_speed(device: str, threads: int = 1) -> Speed:
    """Return a rough guess."""
    if device.startswith("cpu"):
        return Speed(device=device, linear=ASSUMED_CPU * threads, attention=ASSUMED_CPU * threads, source="assumed")
    return Speed(device=device, linear=ASSUMED_GPU, attention=ASSUMED_GPU / 2, source="assumed")


def speed_of_pass(size: ModelSize, tokens: int, seconds_a_token: float, device: str) -> Speed | None:
    """Return the speed at which an earlier job evaluated windows of so many tokens; None if it says nothing."""
    if not (tokens > 1 and 0 < seconds_a_token < math.inf):
        return None
    rate = size.operations(tokens).total / (tokens * seconds_a_token)
    return Speed(device=device, linear=rate, attention=rate, source="earlier", length=tokens)


class Recorded(Protocol):
    """Looks up how fast models were evaluated before."""

    def speed(self, key: str) -> Any:
        """What a worker measured of models of a size, as JSON, or None."""
        ...

    def pace(self, model: str) -> tuple[int, float] | None:
        """Length, and seconds a token, of an earlier job with a model, or None."""
        ...


def recorded_speed(
    recorded: Recorded, device: str
) -> Callable[[ModelSpec, PretrainedConfig, ModelSize, int], Speed | None]:
    """Find speeds in what was recorded, or else assume one; nothing is measured.

    Args:
        recorded: looks them up.
        device: kind of device that computes.
    """

    def find(model: ModelSpec, config: PretrainedConfig, size: ModelSize, tokens: int) -> Speed | None:
        found = Speed.from_json(recorded.speed(size.key), source="recorded")
        others = (replace(size, dtype=dtype) for dtype in ("bfloat16", "float32", "float16") if dtype != size.dtype)
        for other in others:  # of training, which computes in another precision than evaluations
            found = found or Speed.from_json(recorded.speed(other.key), source="earlier")
        if found is None and (pace := recorded.pace(model.id)) is not None:
            found = speed_of_pass(size, *pace, device)
        return found or assumed_speed(device)

    return find


def calibrated(model: nn.Module, size: ModelSize, tokens: int) -> Speed:
    """Measure how fast a loaded model evaluates texts of up to so many tokens, or return what was measured before.

    Args:
        model: a causal language model in evaluation mode, with its own weights or random ones.
        size: of the model.
        tokens: of the windows that will be evaluated.
    """
    device = next(model.parameters()).device
    file = _file(size, device, tokens)
    known = _read(file)
    if known is not None:
        return known
    busy = _Busy(device)
    speed = measured(lambda length: _seconds(model, length, device), size, tokens, described(device))
    if not busy():
        _keep(file, speed)
    return speed


class _Busy:
    """Whether others computed on the same processor meanwhile: a speed that was measured then says nothing later."""

    def __init__(self, device: torch.device) -> None:
        self._is_cpu, self._cpu, self._wall = device.type == "cpu", time.process_time(), time.perf_counter()

    def __call__(self) -> bool:
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return self._is_cpu and cpu < LEAST_SHARE * wall


def known_speed(size: ModelSize, device: torch.device, tokens: int) -> Speed | None:
    """Return what :func:`calibrated` measured here before; None if nothing."""
    return _read(_file(size, device, tokens))


def calibrated_alike(spec: ModelSpec, config: PretrainedConfig, size: ModelSize, tokens: int) -> Speed | None:
    """Measure with random numbers in the place of weights, in as many layers as two GiB hold; None if that fails.

    Args:
        spec: the model, whose weights are not read.
        config: its configuration.
        size: its size.
        tokens: of the windows that will be evaluated.
    """
    device = device_of(spec)
    known = known_speed(size, device, tokens)
    if known is not None:
        return known
    busy = _Busy(device)
    try:
        fewer = _fewer_layers(config, size)
        model = _random(fewer, size, device)
        part = model_size(spec, fewer)
        speed = measured(lambda length: _seconds(model, length, device), part, tokens, described(device))
    except (FactorSearchError, RuntimeError, MemoryError, ValueError, TypeError, AttributeError, KeyError):
        return None  # a model that cannot be made of fewer layers, or memory for it
    if not busy():
        _keep(_file(size, device, tokens), speed)
    return speed


def measured(seconds: Callable[[int], float], size: ModelSize, tokens: int, device: str) -> Speed:
    """Measure passes of two lengths, from which the speeds of matrices and of attention follow.

    Args:
        seconds: measures one pass of so many tokens.
        size: of the model.
        tokens: of the longest pass, if it takes seconds only.
        device: in words.
    """
    first = min(tokens, 4 * SHORTEST)
    seconds(min(tokens, SHORTEST))  # kernels are chosen, and memory is taken, by the first pass
    rate = size.operations(first).total / max(seconds(first), 1e-9)
    long = tokens
    while long > first and size.operations(long).total / rate > PASS_SECONDS:
        long = max(long // 2, first)
    short = max(2, min(long, max(SHORTEST, long // 4)))
    times = [_median(seconds, length, 1 if length == long and length < tokens else REPEATS) for length in (short, long)]
    linear, attention = _two_speeds([size.operations(short), size.operations(long)], times)
    return Speed(device=device, linear=linear, attention=attention, source="measured", length=long)


def _two_speeds(operations: list[Operations], times: list[float]) -> tuple[float, float]:
    """Solve linear / x + attention / y = time for both passes; one speed for all where that has no sensible solution.

    Overheads of short passes, and noise where attention takes little time, can make a speed negative or absurd.
    """
    (a, b), (s, t) = operations, times
    both = b.total / max(t, 1e-9)
    determinant = a.linear * b.attention - b.linear * a.attention
    if abs(determinant) < 1e-6 * b.linear * max(b.attention, 1.0):
        return both, both
    x = (s * b.attention - t * a.attention) / determinant  # seconds of a linear operation
    y = (a.linear * t - b.linear * s) / determinant
    if min(x, y) <= 0 or not both / 20 < 1 / x < 20 * both or not both / 50 < 1 / y < 50 * both:
        return both, both
    return 1 / x, 1 / y


def _median(seconds: Callable[[int], float], length: int, repeats: int) -> float:
    return sorted(seconds(length) for _ in range(repeats))[repeats // 2]


def _seconds(model: Any, length: int, device: torch.device) -> float:
    """Seconds of one pass that scores all tokens, as an evaluation does."""
    words = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(length, device=device) * 7919 % words)[None]
    start = CLOCK()
    losses = token_losses(model, ids)
    losses.sum().item()  # a GPU computes until then
    return CLOCK() - start


def described(device: torch.device) -> str:
    """Return a device in words, for people and records."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"cpu, {_threads(torch.get_num_threads())}" if device.type == "cpu" else device.type


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def device_of(spec: ModelSpec) -> torch.device:
    """Return the device that a model would be loaded on; the CPU where the one that is asked for is not here."""
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        return torch.device("cpu")
    return device


def _file(size: ModelSize, device: torch.device, tokens: int) -> Path:
    """The file of a speed in the cache, which is of this machine, these libraries and about so many tokens."""
    key = {
        "size": size.key,
        "device": [described(device), platform.processor() or platform.machine(), platform.node()],
        "tokens": 1 << max(tokens - 1, 1).bit_length(),
        "torch": torch.__version__,
        "transformers": transformers_version,
    }
    return cache_folder(KIND) / f"{sha256_of(key)}.json"


def _keep(file: Path, speed: Speed) -> None:
    write_atomically(file, canonical_json(speed.as_json()).encode())


def _read(file: Path) -> Speed | None:
    try:
        return Speed.from_json(read_json(file, FactorSearchError))
    except FactorSearchError:
        return None


def _fewer_layers(config: PretrainedConfig, size: ModelSize) -> PretrainedConfig:
    """The same configuration with as many layers as may be held in memory."""
    most = min(RANDOM_BYTES, (available_bytes() or RANDOM_BYTES) // 4)
    whole = copy.deepcopy(config)
    outside = 2 * size.vocabulary * size.hidden * size.bytes_each
    text = whole.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    each = max(size.parameters * size.bytes_each - outside, 1) / layers
    kept = max(1, min(layers, int((most - outside) // each)))
    if kept == layers:
        return whole
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:kept])
    text.num_hidden_layers = kept
    return whole


def _random(config: PretrainedConfig, size: ModelSize, device: torch.device) -> nn.Module:
    """A model of small random weights; its buffers are constants, so that nothing overflows."""
    if size.parameters * size.bytes_each > 64 * RANDOM_BYTES:
        raise MemoryError
    model = build_on_meta(config, size.kernel).to_empty(device=device).to(getattr(torch, size.dtype)).eval()
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02, generator=generator)
        for buffer in model.buffers():
            buffer.fill_(0.01) if buffer.is_floating_point() else buffer.zero_()
    return model
