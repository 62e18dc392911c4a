"""Applies candidates to a loaded model, without reloading it and without code for single architectures.

Every decoder in transformers has rotary modules with a buffer of inverse frequencies and a ``forward(x, position_ids)``
that computes rotations from it. The injector wraps that forward, and replaces the buffer by a candidate's frequencies
during the call. It does not interpret the result, so half, interleaved and complex layouts, partial rotary dimensions
and multi-axis positions all work.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from factor_search.errors import FactorsError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.model.decoder import decoder_of
from factor_search.model.geometry import Geometry
from factor_search.model.losses import token_losses, why_not_finite

FINITE_TOKENS = 512
"""Tokens of a document on which the model as it is must have finite losses."""
Rotation = Any
"""What a rotary module returns: a tensor (complex) or a tuple of tensors (cos, sin), batch first."""


@dataclass(frozen=True)
class Site:
    """One rotary module, with the names of its frequency buffer and of its scaling."""

    module: nn.Module
    buffer: str
    scaling: str
    layer_type: str | None
    plain_forward: Callable[..., Rotation]
    """The class's forward without the decorator that recomputes frequencies for dynamic RoPE types."""

    @classmethod
    def of(cls, module: nn.Module, buffer: str, scaling: str, layer_type: str | None) -> "Site":
        """Describe a rotary module."""
        return cls(module, buffer, scaling, layer_type, inspect.unwrap(type(module).forward))

    def __reduce__(self) -> Any:
        return Site.of, (self.module, self.buffer, self.scaling, self.layer_type)  # pickle finds no plain_forward


class Injector:
    """Applies candidates to the rotary modules of one model; as a context manager, it restores them exactly.

    >>> with Injector(model, geometry) as injector:  # doctest: +SKIP
    ...     with injector.using([candidate]):
    ...         model(input_ids)
    """

    def __init__(self, model: PreTrainedModel, geometry: Geometry) -> None:
        """Find the rotary modules.

        Raises:
            UnsupportedModelError: there are none, or their geometry differs from the configuration's.
        """
        self.geometry = geometry
        self._sites = find_sites(decoder_of(model), geometry)
        self._rows: list[Factors] = []
        self._instance_forwards: list[Callable[..., Rotation] | None] = []

    def __enter__(self) -> "Injector":
        for site in self._sites:
            self._instance_forwards.append(site.module.__dict__.get("forward"))  # set by the hooks of accelerate
            site.module.forward = self._wrapped(site)
        return self

    def __exit__(self, *exception: object) -> None:
        for site in reversed(self._sites):
            instance_forward = self._instance_forwards.pop()
            if instance_forward is None:
                del site.module.forward  # the forward of the class becomes visible again
            else:
                site.module.forward = instance_forward

    @contextmanager
    def using(self, rows: Sequence[Factors]) -> Iterator[None]:
        """Let the model compute with the given factors within this context.

        Args:
            rows: one candidate for the whole batch, or one candidate per row of the batch; none for the model's own
                RoPE.

        Raises:
            FactorsError: a candidate has the wrong number of factors for this model.
        """
        for row in rows:
            if len(row.rescale_factors) != self.geometry.pairs:
                raise FactorsError(
                    f"{len(row.rescale_factors)} rescale factors were given, but {self.geometry.architecture} has "
                    f"{self.geometry.pairs} rotary pairs"
                )
        previous, self._rows = self._rows, list(rows)
        try:
            yield
        finally:
            self._rows = previous

    def _wrapped(self, site: Site) -> Callable[..., Rotation]:
        own_forward = site.module.forward

        def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Rotation:
            layer_type = kwargs.get("layer_type", args[0] if args else None)
            rows = self._rows
            if not rows or (site.layer_type is not None and layer_type != site.layer_type):
                return own_forward(x, position_ids, *args, **kwargs)

            def rotation(factors: Factors, positions: Tensor) -> Rotation:
                return self._rotation(site, own_forward, factors, x, positions, args, kwargs)

            if all(row == rows[0] for row in rows):
                return rotation(rows[0], position_ids)
            if len(rows) != x.shape[0]:
                raise ValueError(f"{len(rows)} different candidates for a batch of {x.shape[0]} rows")
            shared = position_ids.shape[-2] == 1
            parts = [
                rotation(row, position_ids if shared else position_ids[..., b : b + 1, :]) for b, row in enumerate(rows)
            ]
            return map_tensors(lambda *tensors: torch.cat(tensors, dim=_batch_dim(position_ids, tensors[0])), *parts)

        return forward

    def _rotation(
        self,
        site: Site,
        own_forward: Callable[..., Rotation],
        factors: Factors,
        x: Tensor,
        position_ids: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Rotation:
        module = site.module
        buffer = module._buffers[site.buffer]
        assert buffer is not None
        inverse = self.geometry.inverse_frequencies(factors.rescale_factors).to(buffer.device)
        has_scaling = hasattr(module, site.scaling)
        own_scaling = getattr(module, site.scaling, None)
        module._buffers[site.buffer] = inverse
        if has_scaling:
            setattr(module, site.scaling, factors.attention_factor)
        try:
            rotation = site.plain_forward(module, x, position_ids, *args, **kwargs)
        finally:
            module._buffers[site.buffer] = buffer
            if has_scaling:
                setattr(module, site.scaling, own_scaling)
        if not has_scaling:
            rotation = map_tensors(lambda tensor: tensor * factors.attention_factor, rotation)
        if factors.initial_tokens == 0:
            return rotation
        base = own_forward(x, position_ids, *args, **kwargs)
        return map_tensors(
            lambda kept, rescaled: where_initial(position_ids, factors.initial_tokens, kept, rescaled), base, rotation
        )


def find_sites(decoder: nn.Module, geometry: Geometry) -> list[Site]:
    """Return the rotary modules whose frequencies factors rescale.

    Raises:
        UnsupportedModelError: there are none, or their geometry differs from the configuration's.
    """
    prefix = f"{geometry.layer_type}_" if geometry.layer_type else ""
    buffer, scaling = f"{prefix}inv_freq", f"{prefix}attention_scaling"
    sites = []
    for module in decoder.modules():
        if "position_ids" not in inspect.signature(module.forward).parameters:
            continue
        if module._buffers.get(buffer) is not None:
            name, layer_type = (buffer, scaling), geometry.layer_type
        elif module._buffers.get("inv_freq") is not None:
            name, layer_type = ("inv_freq", "attention_scaling"), None
        else:
            continue
        sites.append(Site.of(module, *name, layer_type))
    if not sites:
        raise UnsupportedModelError(
            f"{geometry.architecture} has no rotary module with an inverse-frequency buffer: factors cannot be applied "
            "to the way in which it computes RoPE"
        )
    for site in sites:
        found = site.module.get_buffer(site.buffer)
        if found.shape != (geometry.pairs,):
            raise UnsupportedModelError(
                f"{geometry.architecture} keeps {tuple(found.shape)} inverse frequencies, but its configuration says "
                f"{geometry.pairs} rotary pairs"
            )
    return sites


def map_tensors(function: Callable[..., Tensor], *rotations: Rotation) -> Rotation:
    """Apply a function to the tensors of rotations of the same structure."""
    if isinstance(rotations[0], tuple):
        return tuple(function(*tensors) for tensors in zip(*rotations, strict=True))
    return function(*rotations)


def _batch_dim(position_ids: Tensor, rotation: Tensor) -> int:
    """Return the batch dimension of a rotation; multi-axis positions (axes, B, T) may put the axes before the batch."""
    return 1 if position_ids.ndim == 3 and rotation.ndim == 4 else 0


def where_initial(position_ids: Tensor, initial_tokens: int, kept: Tensor, rescaled: Tensor) -> Tensor:
    """Select ``kept`` where position < initial_tokens, and ``rescaled`` elsewhere."""
    positions = position_ids if position_ids.ndim == 2 else position_ids[0]  # (B or 1, T); all axes of a text are equal
    leading = _batch_dim(position_ids, kept)
    shape = [1] * leading + list(positions.shape) + [1] * (kept.ndim - leading - 2)
    return torch.where((positions < initial_tokens).reshape(shape), kept, rescaled)


@torch.inference_mode()
def check_finite(model: PreTrainedModel, geometry: Geometry, tokens: NDArray[np.int64]) -> None:
    """Check on the beginning of a document that the model as it is predicts text, before factors are searched for it.

    Args:
        model: the model.
        geometry: its geometry.
        tokens: token ids of a document, int64 of shape (tokens,).

    Raises:
        UnsupportedModelError: a loss is not finite.
    """
    beginning = tokens[: min(FINITE_TOKENS, geometry.original_length)]
    losses = token_losses(model, torch.from_numpy(beginning)[None].to(model.device))
    if not losses.isfinite().all():
        raise UnsupportedModelError(
            f"{geometry.architecture} as it is gives losses that are not finite on the first {len(beginning)} tokens "
            f"of a document: {why_not_finite(model.dtype)}"
        )


@torch.inference_mode()
def probe(model: PreTrainedModel, geometry: Geometry, tokens: int = 24) -> None:
    """Check on a short input that factors change the logits, and that the model is restored afterwards.

    Raises:
        UnsupportedModelError: changing the rescale factors or the attention factor changes no logit (phimoe, gptj), or
            the model is not restored.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(tokens, device=model.device) * 7919 % vocabulary)[None]

    def logits() -> Tensor:
        computed: Tensor = model(input_ids=ids, use_cache=False).logits
        return computed.float()

    before = logits()
    if not before.isfinite().all():
        raise UnsupportedModelError(
            f"{geometry.architecture} gives non-finite logits on a short input: {why_not_finite(model.dtype)}"
        )
    noise = (logits() - before).abs().max()  # 0, except with GPU kernels that add in any order
    neutral = Factors.of([1.0] * geometry.pairs)
    changed = {
        "rescale factors": Factors.of([1.0 + 3.0 * (i + 1) / geometry.pairs for i in range(geometry.pairs)]),
        "the attention factor": Factors.of([1.0] * geometry.pairs, attention_factor=1.5),
    }
    with Injector(model, geometry) as injector:
        with injector.using([neutral]):
            plain = logits()
        for what, factors in changed.items():
            with injector.using([factors]):
                if not (logits() - plain).abs().max() > 4 * noise:
                    raise UnsupportedModelError(
                        f"{geometry.architecture} ignores {what}: its logits do not change, so there is nothing to "
                        "search"
                    )
    if not (logits() - before).abs().max() <= 4 * noise:
        raise UnsupportedModelError(f"{geometry.architecture} does not return to its own RoPE after a candidate")
