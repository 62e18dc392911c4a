"""Checks the values of a configuration before transformers sees them: types, ranges and depth, each field by its name.

A configuration is a file of others. transformers checks the types of fields that it knows, but builds lists of as many
entries as a number says, and computes with the others as they are. The ranges reach far beyond any published model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from factor_search.errors import ModelLoadError
from factor_search.model.geometry import TEXT_PARTS

DEEPEST = 32
"""Largest number of objects and lists around a value."""
LARGEST_INTEGER = 2**53
"""Of fields without a range of their own; larger ones do not fit into all that computes with them."""
LONGEST_VALUE = 2**20
"""Characters of a text, entries of a list or an object."""
MOST_LAYERS = 1024
WIDEST_HEAD = 2**16
LARGEST_SIZE = 2**24
LONGEST_CONTEXT = 2**40
"""Tokens."""
ROPE_KEYS = ("rope_parameters", "rope_scaling")
OBJECTS = frozenset({*ROPE_KEYS, "text_config", "llm_config", "vision_config", "audio_config", "auto_map"})
TEXTS = frozenset({"model_type", "rope_type", "tokenizer_class"})
SPECIAL_TOKEN = re.compile(r"(bos|eos|pad|unk)_token")
"""Fields with a text, or an object that describes it."""
LISTS = frozenset({"architectures", "layer_types"})
"""Fields with a list of texts."""
PRECISIONS = re.compile(r"(torch\.)?(auto|b?float\d+\w*|double|half|[bn]?fp?\d+|u?int\d+)")


@dataclass(frozen=True)
class _Range:
    names: str
    """A regular expression of whole names."""
    least: float
    most: float
    whole: bool = True

    def complaint(self, value: Any, least: float) -> str | None:
        """What is wrong with a number in the file, and what it may be; None if nothing is."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and least <= value <= self.most and (not self.whole or int(value) == value):
            return None
        return f"{_shown(value)}, not a {'whole ' * self.whole}number from {least:.15g} to {self.most:.15g}"


RANGES = (
    _Range(r"(\w+_)?head_dim|kv_channels", 0, WIDEST_HEAD),
    _Range(r"hidden_size|vocab_size|num_attention_heads|n_embd|n_head|d_model", 1, LARGEST_SIZE),
    _Range(r"\w+_(size|heads|rank)|n_inner|d_ff", -1, LARGEST_SIZE),
    _Range(r"(num|n)_(\w+_)?experts|num_experts_per_tok", 0, WIDEST_HEAD),
    _Range(r"\w*max_position_embeddings|max_sequence_length", 1, LONGEST_CONTEXT),
    _Range(r"sliding_window|attention_chunk_size", -1, LONGEST_CONTEXT),
    _Range(r"(\w+_)?rope_theta|rotary_emb_base|rope_local_base_freq", 1, 1e18, whole=False),
    _Range(r"model_max_length", -1, 1e31),
    _Range(r"partial_rotary_factor|rotary_pct|rope_pct", 1e-6, 16, whole=False),
)
"""Of fields in any object of a configuration, which are numbers or lists of numbers."""
RANGES_OF_ROPE = (
    _Range(r"factor|attention_factor|(short|long)_factor|(short|long)_mscale", 1e-9, 1e9, whole=False),
    _Range(r"alpha", 1e-9, 1e15, whole=False),
    _Range(r"(low|high)_freq_factor|beta_fast|beta_slow|mscale|mscale_all_dim", 0, 1e6, whole=False),
    _Range(r"mrope_section", 0, WIDEST_HEAD),
)
"""Of further fields in the parameters of RoPE."""
COUNTS = _Range(r"(\w+_)?(layers?|depths?|blocks)|num_labels", 0, MOST_LAYERS)
"""Of fields that say how many parts there are, if they are whole numbers: some models have other things there."""


def check_values(content: Any, name: str) -> dict[str, Any]:
    """Check what a ``config.json`` holds, and return it.

    Args:
        content: the parsed file.
        name: of the file, for messages.

    Raises:
        ModelLoadError: a value cannot be meant; names the field and what it may be.
    """
    if not isinstance(content, dict):
        raise ModelLoadError(f"{name} holds {_shown(content)}, not the configuration of a model, which is an object")
    for field in _fields(content):
        complaint = field.complaint()
        if complaint is not None:
            raise ModelLoadError(f"{name}: {field.place:.200} is {complaint}: correct it there")
    return content


@dataclass(frozen=True)
class _Field:
    """A value and where it is."""

    place: str
    """``text_config.rope_scaling.long_factor[3]``"""
    key: str
    """Of the innermost object around it: ``long_factor``."""
    value: Any
    depth: int = 0
    in_rope: bool = False
    in_list: bool = False

    def inside(self) -> Iterator["_Field"]:
        """The values in it."""
        deeper = self.depth + 1
        if self.key.removesuffix("_internal").endswith("_implementation"):  # its keys are names of parts of the model
            return
        if isinstance(self.value, dict):
            in_rope, prefix = self.in_rope or self.key in ROPE_KEYS, f"{self.place}." if self.place else ""
            for key, value in self.value.items():
                yield _Field(f"{prefix}{key}", key, value, deeper, in_rope)
        elif isinstance(self.value, list):
            for i, value in enumerate(self.value):
                yield _Field(f"{self.place}[{i}]", self.key, value, deeper, self.in_rope, True)

    def complaint(self) -> str | None:
        """What is wrong with it, and what it may be; None if nothing is known to be."""
        if self.depth > DEEPEST:
            return f"inside {self.depth} objects and lists, which are more than {DEEPEST}"
        if isinstance(self.value, str | list | dict) and len(self.value) > LONGEST_VALUE:
            return f"of length {len(self.value)}, which is more than {LONGEST_VALUE}"
        wanted = self._wanted()
        if wanted is not None:
            kinds, what = wanted
            return None if isinstance(self.value, kinds) else f"{_shown(self.value)}, not {what}"
        outer = self.place.rpartition(".")[0]  # a configuration of quantisation has precisions of its own
        if self.key in ("dtype", "torch_dtype") and outer in ("", *TEXT_PARTS) and not isinstance(self.value, dict):
            known = isinstance(self.value, str) and PRECISIONS.fullmatch(self.value)
            return None if known else f"{_shown(self.value)}, not a precision such as bfloat16"
        return None if isinstance(self.value, list | dict) else self._out_of_range()

    def _wanted(self) -> tuple[Any, str] | None:
        """The types that a field may have, and what they are in words; None if it may have others."""
        if self.key in OBJECTS and not self.in_list:
            return dict, "an object"
        if self.key in LISTS and not self.in_list:
            return list, "a list of texts"
        if self.key in TEXTS or self.key in LISTS or (self.in_rope and self.key == "type"):
            return str, "a text"
        return (str | dict, "a text") if SPECIAL_TOKEN.fullmatch(self.key) else None

    def _out_of_range(self) -> str | None:
        key, value = self.key, self.value
        ranges: tuple[_Range, ...] = (*RANGES_OF_ROPE, *RANGES) if self.in_rope else RANGES
        for known in ranges:
            if re.fullmatch(known.names, key):
                by_layer = self.in_list and not self.in_rope  # 0 of a layer without that
                least: float = min(known.least, 0) if by_layer else known.least
                return known.complaint(value, least)
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        if re.fullmatch(COUNTS.names, key):
            return COUNTS.complaint(value, min(value, 0))
        return None if abs(value) <= LARGEST_INTEGER else f"{_shown(value)}, which is too large"


def _fields(content: dict[str, Any]) -> Iterator[_Field]:
    """Yield every value that is not null, outer ones first."""
    left = [_Field("", "", content)]
    while left:
        field = left.pop()
        if field.value is not None:
            if field.place:
                yield field
            left.extend(field.inside())


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "a number above 2^53" if value > 0 else "a number below -2^53"
    return f"{value!r:.60}"
