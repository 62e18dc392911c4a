"""Counts the weights of a model and the operations of a forward pass, from its configuration alone.

The modules are built on torch's meta device, which holds shapes and no numbers, so no weight is read or made.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from factor_search.errors import FactorSearchError, UnsupportedModelError, one_line
from factor_search.files.canonical_json import sha256_of
from factor_search.files.gguf import is_gguf, read_header
from factor_search.files.safetensors import tensor_shapes
from factor_search.model.auto_class import auto_class
from factor_search.model.checkpoint_files import opened_checkpoint, weights_of
from factor_search.model.configuration import head_dim, layer_config
from factor_search.model.loading import quietly
from factor_search.model.reach import WINDOWED, WINDOWS, WITHOUT_ROTATION
from factor_search.spec import ModelSpec

MOST_EXPERTS = 600_000
"""In all layers; the largest published models have 50,000. Where each is a module, building one takes 0.1 ms."""
MOST_PARAMETERS = 10**14
"""A hundred times the largest published model."""
EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
ACTIVE_EXPERTS = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k")
"""Keys of configurations: how many experts there are, and how many of them see a token."""
LIMITED = ("flex_attention", "flash_")
"""Beginnings of the names of attention implementations that skip tokens outside a sliding window."""


@dataclass(frozen=True)
class AttentionLayers:
    """Some layers with the same attention."""

    layers: int
    heads: int
    """Of queries."""
    key_heads: int
    """Of keys and values: fewer than those of queries where groups share them."""
    key_width: int
    """Dimensions of a query or key."""
    value_width: int
    window: int | None
    """Tokens that a token sees at most, itself included; None is all before it."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations; a multiplication with an addition counts as two."""

    linear: float
    """Of matrices, which grow with the tokens."""
    attention: float
    """Of tokens with tokens, which grow with their square."""

    @property
    def total(self) -> float:
        """Both."""
        return self.linear + self.attention

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> "Operations":
        return Operations(self.linear * times, self.attention * times)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What memory and time of a model depend on."""

    parameters: int
    """All numbers of the checkpoint; weights that two layers share count once."""
    active: float
    """Entries of the decoder's matrices that are applied to a token; of a mixture, those of the active experts."""
    vocabulary: int
    hidden: int
    """Width of the decoder's output, h."""
    inner: float
    """Outputs of the widest layer after attention for a token, summed over active experts, I."""
    attention: tuple[AttentionLayers, ...]
    kernel: str
    """Attention implementation of transformers."""
    dtype: str
    """Of the weights and the computation, as ``bfloat16``."""
    stored: str
    """Of the checkpoint: as ``dtype``, or ``gguf``, whose reader makes a float32 copy of all weights."""

    @property
    def bytes_each(self) -> int:
        """Bytes of a number."""
        size: int = getattr(torch, self.dtype).itemsize
        return size

    @property
    def key(self) -> str:
        """Equal for models that take equal time: their shape, precision and kernel."""
        return sha256_of(
            {
                "active": round(self.active),
                "head": [self.hidden, self.vocabulary],
                "attention": [vars(one) for one in self.attention],
                "kernel": self.kernel,
                "dtype": self.dtype,
            }
        )

    def operations(self, tokens: int, scored: int | None = None, rows: int = 1) -> Operations:
        """Count the operations of a forward pass that evaluates a text.

        A matrix entry takes part in one multiplication and one addition for each token: 2 x entries x tokens, for the
        decoder and, at the positions that are scored, for the output layer. A query is multiplied with every visible
        key, and the weight with the value: 2 x heads x (key width + value width) x sum of visible lengths, which is
        4 x heads x head size x ... where both are equal (Kaplan et al., 2001.08361, table 1, without embeddings).

        Args:
            tokens: T of a row.
            scored: positions for which logits are computed; None is all but the last.
            rows: of the batch.
        """
        scored = max(tokens - 1, 0) if scored is None else scored
        linear = 2.0 * self.active * tokens + 2.0 * self.hidden * self.vocabulary * scored
        attention = sum(
            2.0 * one.layers * one.heads * (one.key_width + one.value_width) * self._visible(tokens, one.window)
            for one in self.attention
        )
        return Operations(linear, attention) * rows

    def _visible(self, tokens: int, window: int | None) -> float:
        """Sum over the tokens of how many others the kernel multiplies each with.

        ``eager`` multiplies all pairs and masks afterwards; so does ``sdpa`` where a mask is given, which transformers
        does for windows shorter than the text. Without a mask, causal kernels skip what lies ahead: T (T + 1) / 2.
        Kernels that know windows of w skip what lies before them too: w (w + 1) / 2 + (T - w) w.
        """
        if self.kernel == "eager":
            return float(tokens) * tokens
        if window is None or window >= tokens:
            return tokens * (tokens + 1) / 2
        if self.kernel.startswith(LIMITED):
            return window * (window + 1) / 2 + (tokens - window) * window
        return float(tokens) * tokens


def model_size(spec: ModelSpec, config: PretrainedConfig) -> ModelSize:
    """Return the size of the model that a configuration describes; no weights are read.

    Where transformers cannot build the model, or has to run code of the checkpoint for it, the shapes are those in the
    headers of its files.

    Args:
        spec: how the model is loaded.
        config: from :func:`factor_search.model.loading.load_config`.

    Raises:
        UnsupportedModelError: no model of that size can be built, saying why.
    """
    size = _built(spec, config) if not getattr(config, "auto_map", None) else None
    size = size or _from_headers(spec, config)
    if not 0 < size.parameters <= MOST_PARAMETERS:
        raise UnsupportedModelError(f"the configuration describes {size.parameters:,} weights, which cannot be meant")
    return size


def size_of(model: nn.Module, spec: ModelSpec, config: PretrainedConfig) -> ModelSize:
    """Return the size of a model, on whatever device it is.

    Args:
        model: a model of transformers.
        spec: how it is loaded.
        config: its configuration as it was read.
    """
    whole: Any = model
    dtype, stored = _dtype(spec, config), _stored(spec, config)
    config = whole.config.get_text_config(decoder=True)
    head = whole.get_output_embeddings()
    share = _active_share(config)
    active = 0.0
    for name, parameter in _matrices(model, head):
        active += parameter.numel() * (share if _is_of_experts(name) else 1.0)
    words, hidden = whole.get_input_embeddings().weight.shape
    weight = getattr(head, "weight", None)
    if isinstance(weight, nn.Parameter):
        words, hidden = weight.shape
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        active=active,
        vocabulary=int(words),
        hidden=int(hidden),
        inner=_inner(config, hidden),
        attention=tuple(_attention(config)),
        kernel=str(getattr(whole.config, "_attn_implementation", None) or "eager"),
        dtype=dtype,
        stored=stored,
    )


def build_on_meta(config: PretrainedConfig, kernel: str = "") -> nn.Module:
    """Build a model without numbers.

    Raises:
        UnsupportedModelError: it would have far too many parts, or transformers cannot build it.
    """
    _check_meant(config.get_text_config(decoder=True))
    options = {"attn_implementation": kernel} if kernel else {}
    try:
        with torch.device("meta"):
            model: nn.Module = auto_class(config).from_config(copy.deepcopy(config), dtype=torch.bfloat16, **options)
    except FactorSearchError:
        raise
    except Exception as error:  # whatever the values of a configuration make of it
        raise UnsupportedModelError(f"transformers cannot build the model: {one_line(error)}") from error
    return model


def _built(spec: ModelSpec, config: PretrainedConfig) -> ModelSize | None:
    """The size of the model that transformers builds; None if it builds none.

    Raises:
        UnsupportedModelError: it cannot be meant.
    """
    text = config.get_text_config(decoder=True)
    _check_meant(text)
    try:
        with quietly():
            return size_of(build_on_meta(config, "" if spec.attention == "auto" else spec.attention), spec, config)
    except UnsupportedModelError:
        return None


def _from_headers(spec: ModelSpec, config: PretrainedConfig) -> ModelSize:
    """The size by the shapes in the headers of a local model's files.

    Raises:
        UnsupportedModelError: there are none, or the configuration does not say the rest.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if is_gguf(spec.id):
        shapes = {tensor.name: tuple(tensor.shape) for tensor in read_header(Path(spec.id)).tensors}
    elif Path(spec.id).is_dir():
        with opened_checkpoint(spec) as place:
            names = [name for name in weights_of(Path(place)) if name.endswith(".safetensors")]
            shapes = {key: shape for name in names for key, shape in tensor_shapes(Path(place, name)).items()}
    text = config.get_text_config(decoder=True)
    words, hidden = _whole(text, "vocab_size"), _whole(text, "hidden_size")
    if not shapes or not words or not hidden:
        raise UnsupportedModelError(
            "transformers cannot build the model without its weights, and headers of local safetensors or GGUF files "
            "with a vocab_size and a hidden_size in the configuration are not there"
        )
    share = _active_share(text)
    matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and words not in shape}
    active = sum(count * (share if _is_of_experts(name) else 1.0) for name, count in matrices.items())
    return ModelSize(
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        active=active,
        vocabulary=words,
        hidden=hidden,
        inner=_inner(text, hidden),
        attention=tuple(_attention(text)),
        kernel="sdpa" if spec.attention == "auto" else spec.attention,
        dtype=_dtype(spec, config),
        stored=_stored(spec, config),
    )


def _check_meant(text: PretrainedConfig) -> None:
    experts = max(_whole(text, name) or 0 for name in EXPERTS)
    if _layers(text) * experts > MOST_EXPERTS:
        raise UnsupportedModelError(
            f"the configuration describes {_layers(text) * experts:,} experts, which cannot be meant"
        )


def _matrices(model: nn.Module, head: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by which each token is multiplied: neither embeddings, nor the output layer, nor vectors."""
    left_out = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(getattr(head, "weight", None), nn.Parameter):
        left_out.add(id(head.weight))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in left_out and "bias" not in name.rsplit(".", 1)[-1]:
            yield name, parameter


def _is_of_experts(name: str) -> bool:
    """Whether a weight is of experts of which a token sees some; shared experts see all tokens.

    As ``layers.0.mlp.experts.3.up_proj.weight`` and, in GGUF files, ``blk.0.ffn_up_exps.weight``; but not
    ``layers.0.mlp.shared_experts.up_proj.weight`` or ``blk.0.ffn_up_shexp.weight``.
    """
    return any(part == "experts" or part.endswith("_exps") for part in name.split("."))


def _experts(config: PretrainedConfig) -> tuple[int, int]:
    """How many experts a layer has, and how many of them see a token; 0 where the configuration does not say."""
    experts, active = (
        next((value for name in names if (value := _whole(config, name))), 0) for names in (EXPERTS, ACTIVE_EXPERTS)
    )
    return experts, active


def _active_share(config: PretrainedConfig) -> float:
    """The share of the experts that see a token."""
    experts, active = _experts(config)
    return min(active / experts, 1.0) if experts and active else 1.0


def _inner(config: PretrainedConfig, hidden: int) -> float:
    """The width of the layer after attention: of a mixture, of all active experts and the shared ones together."""
    width = _whole(config, "intermediate_size") or _whole(config, "ffn_dim") or 4 * hidden
    experts, active = _experts(config)
    if experts and active:
        each = _whole(config, "moe_intermediate_size") or width
        shared = _whole(config, "shared_expert_intermediate_size") or each * (_whole(config, "n_shared_experts") or 0)
        width = each * min(active, experts) + shared
    return float(width)


def _attention(config: PretrainedConfig) -> Iterator[AttentionLayers]:
    """Layers by their type; those without softmax attention are left out."""
    layers = _layers(config)
    types: list[str | None] = list(getattr(config, "layer_types", None) or ())[:layers] or [None] * layers
    for kind, count in Counter(types).items():
        if kind in WITHOUT_ROTATION:
            continue
        one = layer_config(config, kind)
        windowed = kind in WINDOWS or (kind is None and config.model_type in WINDOWED)
        heads = _whole(one, "num_attention_heads") or _whole(one, "n_head") or 1
        width = head_dim(one)
        rotary, plain = _whole(one, "qk_rope_head_dim"), _whole(one, "qk_nope_head_dim")
        keys = rotary + plain if rotary and plain else (_whole(one, "head_dim") or width)
        yield AttentionLayers(
            layers=count,
            heads=heads,
            key_heads=heads if rotary else _whole(one, "num_key_value_heads") or heads,
            key_width=keys,
            value_width=_whole(one, "v_head_dim") or (width if rotary else keys),
            window=_whole(one, WINDOWS.get(kind or "", "sliding_window")) if windowed else None,
        )


def _layers(config: PretrainedConfig) -> int:
    return _whole(config, "num_hidden_layers") or _whole(config, "n_layer") or 1


def _whole(config: PretrainedConfig, name: str) -> int | None:
    """A positive whole number of a configuration; the largest where it differs by layer."""
    try:
        value = getattr(config, name, None)
    except Exception:  # transformers raises for what layers do not share
        return None
    if isinstance(value, list | tuple):
        value = max((one for one in value if isinstance(one, int)), default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _dtype(spec: ModelSpec, config: PretrainedConfig) -> str:
    if spec.dtype != "auto":
        return spec.dtype
    if is_gguf(spec.id):
        from factor_search.model.gguf_file import own_dtype

        return _name(own_dtype(read_header(Path(spec.id))))
    text = config.get_text_config(decoder=True)
    return _name(getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.float32)


def _stored(spec: ModelSpec, config: PretrainedConfig) -> str:
    return "gguf" if is_gguf(spec.id) else _dtype(spec.model_copy(update={"dtype": "auto"}), config)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
