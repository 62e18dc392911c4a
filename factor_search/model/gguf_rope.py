"""Reads what the RoPE of a GGUF file means, by the rules of llama.cpp.

The rules were read in llama.cpp's ``src/llama-model.cpp`` (hparams), ``src/llama-context.cpp`` (attention factor of
YaRN) and ``ggml_rope_yarn``, and are checked by running it. It divides theta_i by ``rope_freqs.weight``, or by one of
the pair ``rope_factors_long.weight`` and ``rope_factors_short.weight`` where the architecture or the scaling type asks
for it, and multiplies cos and sin by ``rope.scaling.attn_factor``, whatever the scaling type.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factor_search.errors import ModelLoadError
from factor_search.files.gguf import Header

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
READ_FREQS = (
    "llama",
    "llama4",
    "deci",
    "arcee",
    "apertus",
    "exaone",
    "granite",
    "granitemoe",
    "mistral3",
    "minicpm",
)
"""Architectures whose ``rope_freqs.weight`` llama.cpp reads."""
READ_PAIR = ("phi3", "phimoe", "minicpm3")
"""Architectures whose pair of long and short factors llama.cpp reads."""
OWN_FREQS = ("gemma4",)
"""Architectures that use ``rope_freqs.weight`` for something else: pairs that do not rotate."""
IGNORE_FREQS = ("llada", "falcon-h1", "pangu-embedded", "cogvlm")
"""Architectures whose files llama.cpp loads with ``rope_freqs.weight``, but computes without it."""
SCALING_TYPES = ("none", "linear", "yarn", "longrope")
MOST = {
    "{arch}.block_count": 1024,
    "{arch}.embedding_length": 2**24,
    "{arch}.feed_forward_length": 2**24,
    "{arch}.attention.head_count": 2**24,
    "{arch}.attention.head_count_kv": 2**24,
    "{arch}.attention.key_length": 2**16,
    "{arch}.attention.value_length": 2**16,
    "{arch}.rope.dimension_count": 2**16,
    "{arch}.expert_count": 2**16,
    "{arch}.context_length": 2**40,
    "{arch}.rope.scaling.original_context_length": 2**40,
}
"""The largest sizes, far beyond any model."""
FASTEST, SLOWEST = 32.0, 1.0
"""YaRN's beta_fast and beta_slow: llama.cpp does not read those in a file for any of these architectures."""


@dataclass(frozen=True, kw_only=True)
class FileRope:
    """The rotary geometry and the scaling in a GGUF file."""

    rope_theta: float
    head_dim: int
    rotary_dim: int
    context_length: int
    """Tokens for which the file may be used, scaling included."""
    stated_length: int | None
    """Tokens of context before the scaling, where the file states them."""
    scaling: str
    """One of :data:`SCALING_TYPES`."""
    factor: float
    """Every frequency is divided by this (linear), or those below a ramp (yarn)."""
    attention_factor: float
    """What cos and sin are multiplied by, YaRN's own part included."""
    long_factors: tuple[float, ...] | None
    """What the frequencies are divided by beyond the original length, before the factor; None is 1 throughout."""
    short_factors: tuple[float, ...] | None
    """The same for contexts up to the original length."""

    @property
    def original_length(self) -> int:
        """Tokens of context before the scaling; the context length where the file does not say."""
        return self.stated_length or self.context_length

    def rescale_factors(self, short: bool = False) -> tuple[float, ...]:
        """Lambda_i relative to the plain theta_i, of shape (rotary_dim / 2,)."""
        pairs = self.rotary_dim // 2
        own = (self.short_factors if short else self.long_factors) or (1.0,) * pairs
        if self.factor == 1.0:
            return own
        if self.scaling != "yarn":
            return tuple(value * self.factor for value in own)
        low, high = self._ramp()
        kept = [1 - min(max((i - low) / max(high - low, 0.001), 0.0), 1.0) for i in range(pairs)]
        return tuple(value / ((1 - m) / self.factor + m) for value, m in zip(own, kept, strict=True))

    def _ramp(self) -> tuple[float, float]:
        """The pairs between which YaRN interpolates (2309.00071, eq. 23), rounded outwards."""
        d = self.rotary_dim

        def pair_of(rotations: float) -> float:
            return d * math.log(self.original_length / (rotations * 2 * math.pi)) / (2 * math.log(self.rope_theta))

        return max(0, math.floor(pair_of(FASTEST))), min(d - 1, math.ceil(pair_of(SLOWEST)))

    def as_transformers(self) -> dict[str, Any]:
        """The same in the words of transformers' ``rope_parameters``."""
        parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rotary_dim != self.head_dim:
            parameters["partial_rotary_factor"] = self.rotary_dim / self.head_dim
        rescaled = self.long_factors is not None
        if not rescaled and self.factor == 1.0 and self.attention_factor == 1.0:
            return parameters
        if not rescaled and self.scaling == "linear" and self.attention_factor == 1.0:
            return parameters | {"rope_type": "linear", "factor": self.factor}
        parameters |= {
            "original_max_position_embeddings": self.original_length,
            "attention_factor": self.attention_factor,
        }
        if not rescaled and self.scaling == "yarn":
            return parameters | {
                "rope_type": "yarn",
                "factor": self.factor,
                "beta_fast": FASTEST,
                "beta_slow": SLOWEST,
            }
        return parameters | {
            "rope_type": "longrope",
            "factor": max(self.context_length / self.original_length, 1.0),
            "long_factor": list(self.rescale_factors()),
            "short_factor": list(self.rescale_factors(short=True)),
        }


def read_rope(header: Header) -> FileRope | None:
    """Read the RoPE of a file; None if the architecture has none that the file describes.

    The original length is ``rope.scaling.original_context_length``. Without that key it is ``context_length``, also
    beside a ``rope_freqs.weight`` (files of Llama 3.1): the model was trained to that length with those factors, and
    the file does not say what came before.

    Raises:
        ModelLoadError: a value is missing or impossible, or llama.cpp would not load the file.
    """
    try:
        return _rope_of(header)
    except (TypeError, ValueError, ArithmeticError):
        raise ModelLoadError(f"{header.file} describes an impossible RoPE: a value is of the wrong kind") from None


def _rope_of(header: Header) -> FileRope | None:
    heads, width = _first(header.get("{arch}.attention.head_count")), header.get("{arch}.embedding_length")
    context = header.get("{arch}.context_length")
    if not heads or not width or not context:
        return None
    head_dim = int(header.get("{arch}.attention.key_length") or width // heads)
    rotary_dim = int(header.get("{arch}.rope.dimension_count") or head_dim)
    scaling = str(header.get("{arch}.rope.scaling.type", "linear"))
    if scaling not in SCALING_TYPES:
        raise ModelLoadError(
            f"{header.file} has RoPE scaling of type {scaling!r}, which llama.cpp does not know: expected one of "
            f"{', '.join(SCALING_TYPES)}"
        )
    long, short = _factors(header, scaling, rotary_dim // 2)
    factor = header.get("{arch}.rope.scaling.factor") or header.get("{arch}.rope.scale_linear") or 1.0
    factor = 1.0 if scaling == "none" else shortest(factor)
    rope = FileRope(
        rope_theta=shortest(header.get("{arch}.rope.freq_base", 10_000.0)),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        context_length=int(context),
        stated_length=int(header.get("{arch}.rope.scaling.original_context_length") or 0) or None,
        scaling=scaling,
        factor=factor,
        attention_factor=_attention_factor(header, scaling, factor),
        long_factors=long,
        short_factors=short,
    )
    values = (rope.rope_theta - 1, rope.factor, rope.attention_factor, *(long or ()), *(short or ()))
    if not all(math.isfinite(value) and value > 0 for value in values) or rotary_dim % 2 or rotary_dim > head_dim:
        raise ModelLoadError(f"{header.file} describes an impossible RoPE: its base, dimension or factors are wrong")
    return rope


def check_numbers(header: Header) -> None:
    """Refuse sizes that no model has, before something of their size is built.

    Raises:
        ModelLoadError: names the key.
    """
    for key, most in MOST.items():
        value = header.get(key)
        values = value if isinstance(value, tuple) else (value,)
        wrong = [one for one in values if one is not None and not (type(one) is int and 0 <= one <= most)]
        if wrong:
            name = key.format(arch=header.architecture)
            raise ModelLoadError(f"{header.file}: {name} is {wrong[0]!r:.60}, not a whole number up to {most}")


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same float32: 1.17 rather than 1.1699999570846558."""
    return float(str(np.float32(value)))


def _factors(header: Header, scaling: str, pairs: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The long and the short factors that llama.cpp computes with."""
    architecture = header.architecture
    if architecture in OWN_FREQS:
        return None, None
    if header.tensor(FREQS) is not None and architecture not in (*READ_FREQS, *IGNORE_FREQS):
        raise ModelLoadError(
            f"{header.file} has {FREQS}, and llama.cpp refuses such a file of architecture {architecture}: give the "
            "file without it"
        )
    if scaling == "longrope" or architecture in READ_PAIR:
        long, short = (_values(header, name, pairs) for name in (LONG, SHORT))
        if (long is None) != (short is None):
            raise ModelLoadError(f"{header.file} has only one of {LONG} and {SHORT}")
        return long, short
    same = _values(header, FREQS, pairs) if architecture in READ_FREQS else None
    return same, same


def _values(header: Header, name: str, pairs: int) -> tuple[float, ...] | None:
    tensor = header.tensor(name)
    if tensor is None:
        return None
    try:
        values = tensor.floats()
    except ValueError as error:
        raise ModelLoadError(f"{header.file}: {error}, so llama.cpp cannot read it") from None
    if len(values) != pairs:
        raise ModelLoadError(f"{header.file}: {name} has {len(values)} numbers for {pairs} rotary pairs")
    return tuple(shortest(value) for value in values)


def _attention_factor(header: Header, scaling: str, factor: float) -> float:
    """``attn_factor`` times YaRN's own 0.1 ln s + 1."""
    own = shortest(header.get("{arch}.rope.scaling.attn_factor", 1.0))
    return own * (0.1 * math.log(factor) + 1.0) if scaling == "yarn" and factor > 1.0 else own


def _first(value: "int | Sequence[int] | None") -> int | None:
    """The number of heads; files whose layers differ list one for each layer, and a layer without attention has 0."""
    if isinstance(value, tuple):
        return next((int(heads) for heads in value if heads), None)
    return value if isinstance(value, int) else None
