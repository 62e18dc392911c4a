"""Applies factors to a model that others use: ``generate``, a compiled model, several threads.

A rotary module gets a forward of its own, which computes with copies of the module that hold the frequencies of the
factors. The module itself is not changed, so nothing is rebuilt at a call, and threads do not disturb each other.
"""

import copy
import inspect
import sys
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search.errors import FactorsError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.model.configuration import read_geometry
from factor_search.model.decoder import decoder_of
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Rotation, Site, find_sites, map_tensors, where_initial
from factor_search.model.live_frequencies import CHANGING, with_frequencies_of

Model = TypeVar("Model", bound=nn.Module)

FROM_ONE = frozenset({"paligemma"})
"""Types of models whose first position is 1."""


class Application(Generic[Model]):
    """Factors in force in a model, from the construction on until :meth:`restore` or the end of a ``with`` block.

    Within a ``with`` block the model itself is the value: ``with Application(...) as model``.
    """

    def __init__(self, model: Model, geometry: Geometry, factors: Factors, target_length: int | None = None) -> None:
        """Put the factors into force.

        Args:
            model: a transformers model, also a compiled one, with or without a head.
            geometry: of its configuration.
            factors: one candidate.
            target_length: tokens for which the factors were found. Where a model's own RoPE depends on the length of
                the input (longrope, dynamic), initial tokens keep the RoPE of an input of this length.

        Raises:
            FactorsError: the number of factors is not that of the model, or factors are applied already.
            UnsupportedModelError: the model computes RoPE in a way that factors do not reach.
        """
        if not isinstance(factors, Factors):
            raise FactorsError(
                f"factors are a FactorsFile or Factors, as load_factors gives, not {type(factors).__name__}"
            )
        self.model = model
        self.factors = factors
        if len(factors.rescale_factors) != geometry.pairs:
            raise FactorsError(
                f"{len(factors.rescale_factors)} rescale factors were given, but {geometry.architecture} has "
                f"{geometry.pairs} rotary pairs"
            )
        decoder = _decoder(model)
        sites = find_sites(decoder, geometry)
        if any(isinstance(site.module.__dict__.get("forward"), _AppliedForward) for site in sites):
            raise FactorsError(
                "factors are applied to this model already: call restore() on what apply returned, then apply others"
            )
        length = target_length or max(geometry.configured_length, geometry.original_length + 1)
        self._replaced = [(site.module, _AppliedForward(site, geometry, factors, length)) for site in sites]
        for _, forward in self._replaced:
            forward.check_effective(geometry.architecture)
        self._before = [module.__dict__.get("forward") for module, _ in self._replaced]  # set by hooks of accelerate
        for module, forward in self._replaced:
            module.forward = forward
        first = int(configuration_of(model).model_type in FROM_ONE)
        self._hooks = [
            module.register_forward_pre_hook(_PositionsFromMask(parameters, first), prepend=True, with_kwargs=True)
            for module in _with_positions(model, decoder)
            if {"attention_mask", "position_ids"} <= set(parameters := _parameters_of(module))
        ]
        _forget_compiled_code()

    def __enter__(self) -> Model:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Let the model compute with its own RoPE again; a second call does nothing.

        Raises:
            FactorsError: something else has replaced the forward of a rotary module in the meantime.
        """
        if any(module.__dict__.get("forward") is not forward for module, forward in self._replaced):
            raise FactorsError(
                "the model cannot be restored, because something has wrapped its rotary modules since factors were "
                "applied: undo that first"
            )
        for (module, _), before in zip(self._replaced, self._before, strict=True):
            if before is None:
                del module.forward  # the forward of the class becomes visible again
            else:
                module.forward = before
        for hook in self._hooks:
            hook.remove()
        if self._replaced:
            _forget_compiled_code()
        self._replaced, self._before, self._hooks = [], [], []


class _AppliedForward:
    """The forward of one rotary module while factors are applied.

    An object instead of a function, so that a model can be copied and pickled with it.
    """

    def __init__(self, site: Site, geometry: Geometry, factors: Factors, length: int) -> None:
        self._site = site
        self._own_forward = site.module.forward
        self._factors = factors
        self._scaled_by_module = hasattr(site.module, site.scaling)
        self._device = site.module.get_buffer(site.buffer).device
        inverse = geometry.inverse_frequencies(factors.rescale_factors).to(self._device)
        self._rescaled = _copy_with(site, inverse, factors.attention_factor)
        self._kept = _copy_with(site, *_own_frequencies(site, geometry, length))

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Rotation:
        site, factors = self._site, self._factors
        if site.layer_type is not None and kwargs.get("layer_type", args[0] if args else None) != site.layer_type:
            return self._own_forward(x, position_ids, *args, **kwargs)
        if x.device != self._device and not torch.compiler.is_compiling():
            self._move(x.device)
        rotation = site.plain_forward(self._rescaled, x, position_ids, *args, **kwargs)
        if not self._scaled_by_module:
            rotation = map_tensors(lambda tensor: tensor * factors.attention_factor, rotation)
        if factors.initial_tokens == 0:
            return rotation
        own = site.plain_forward(self._kept, x, position_ids, *args, **kwargs)
        return map_tensors(
            lambda kept, rescaled: where_initial(position_ids, factors.initial_tokens, kept, rescaled), own, rotation
        )

    def _move(self, device: torch.device) -> None:
        """Follow the model to another device; each attribute is replaced as a whole, for threads that compute."""
        self._rescaled, self._kept = (
            _copy_with(replace(self._site, module=module), module.get_buffer(self._site.buffer).to(device), None)
            for module in (self._rescaled, self._kept)
        )
        self._device = device

    def check_effective(self, architecture: str) -> None:
        """Refuse a module that computes its rotations from something else than its frequencies (phimoe).

        Raises:
            UnsupportedModelError: other frequencies give the same rotations.
        """
        if self._device.type == "meta":
            return
        x = torch.zeros(1, 1, 1, device=self._device)
        layer_type = {} if self._site.layer_type is None else {"layer_type": self._site.layer_type}
        axes = getattr(self._site.module, "mrope_section", None)
        shape = (len(axes), 1, 1) if axes else (1, 1)
        position_ids = torch.full(shape, 977, device=self._device)
        slower = self._rescaled.get_buffer(self._site.buffer) / 3
        try:
            rotations = [
                self._site.plain_forward(module, x, position_ids, **layer_type)
                for module in (self._rescaled, _copy_with(self._site, slower, self._factors.attention_factor))
            ]
        except Exception:  # code that comes with a checkpoint may need a true input
            return
        changed = map_tensors(lambda one, other: (one != other).any(), *rotations)
        if not (any(changed) if isinstance(changed, tuple) else changed):
            raise UnsupportedModelError(
                f"{architecture} ignores rescale factors: its rotary module computes the same rotations with other "
                "frequencies"
            )


def configuration_of(model: Any) -> PretrainedConfig:
    """Return the configuration of a loaded model, compiled or not.

    Raises:
        UnsupportedModelError: it is not a loaded transformers model.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(config, PretrainedConfig):
        raise UnsupportedModelError(f"a loaded transformers model is needed, not {type(model).__name__}")
    return config


def geometry_of(model: nn.Module, original_length: int | None = None) -> Geometry:
    """Return the rotary geometry of a loaded model, whose own frequencies count where they are fixed.

    Args:
        model: a transformers model, also a compiled one.
        original_length: tokens the model was trained for; overrides a wrong value in the configuration.

    Raises:
        UnsupportedModelError: it is not a loaded transformers model, or computes RoPE in an unknown way.
    """
    geometry = read_geometry(configuration_of(model), original_length)
    return geometry if geometry.base_rope_type in CHANGING else with_frequencies_of(_decoder(model), geometry)


def _decoder(model: nn.Module) -> nn.Module:
    """Return the decoder of a model; a model without a head is one itself."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not hasattr(model, "get_decoder"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers language model")
    try:
        return decoder_of(model)
    except UnsupportedModelError:
        return model


def _with_positions(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """Return the modules that may derive position ids from an attention mask: the decoder, and those around it.

    A multi-modal model gives the mask other forms before it calls the decoder (gemma3), so the outermost module
    that gets the mask has to derive them. Models with several positions for each token (Qwen2-VL) compute them in
    modules around the decoder, from images too, and are left to do so.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    names = path.split(".") if path else []
    around = [model.get_submodule(".".join(names[:end])) for end in range(len(names))]
    return [decoder] if any(hasattr(module, "get_rope_index") for module in around) else [*around, decoder]


def _parameters_of(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _copy_with(site: Site, inverse: Tensor, scaling: float | None) -> nn.Module:
    """Copy a rotary module, which keeps its configuration, and give the copy other frequencies.

    Args:
        site: the module.
        inverse: the frequencies, of shape (pairs,).
        scaling: multiplies cos and sin, where the module does that; None keeps the module's own.
    """
    module = copy.copy(site.module)
    module._buffers = module._buffers | {site.buffer: inverse}
    if scaling is not None and hasattr(module, site.scaling):
        setattr(module, site.scaling, scaling)
    return module


def _own_frequencies(site: Site, geometry: Geometry, length: int) -> tuple[Tensor, float | None]:
    """Return the frequencies and the scaling of the model's own RoPE, for an input of ``length`` tokens."""
    buffer = site.module.get_buffer(site.buffer)
    if geometry.base_rope_type != "longrope" and "dynamic" not in geometry.base_rope_type:
        return buffer, None
    initialise = ROPE_INIT_FUNCTIONS[geometry.base_rope_type]
    inverse, scaling = initialise(geometry.config, None, seq_len=length, layer_type=geometry.layer_type)
    return inverse.to(buffer.device), scaling


@dataclass(frozen=True)
class _PositionsFromMask:
    """A hook before a module's forward that derives absent position ids from an attention mask with padding.

    Transformers counts positions from the first column, so initial tokens would be looked for in the padding, and a
    bare forward of a left-padded batch gives another row's worth of positions. ``generate`` derives them itself.
    """

    parameters: tuple[str, ...]
    """Of the module's forward, in order."""
    first: int
    """The position of a row's first token."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        mask, cache = given.get("attention_mask"), given.get("past_key_values")
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if given.get("position_ids") is not None or inputs is None or not isinstance(mask, Tensor) or mask.ndim != 2:
            return None
        positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0) + self.first  # as generate does
        start = 0 if cache is None else cache.get_seq_length()
        columns = (torch.arange(inputs.shape[1], device=mask.device) + start).clamp(max=mask.shape[1] - 1)
        return (), given | {"position_ids": positions[:, columns]}


def _forget_compiled_code() -> None:
    """Make torch.compile compile again.

    It does not look for changed hooks, and after 8 versions of a function it gives up or raises an error.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
