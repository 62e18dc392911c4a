"""Adds low-rank adapters (LoRA, 2106.09685) to a model with peft, and merges them into its weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from factor_search.errors import FinetuneError, SpecError
from factor_search.finetune.spec import LoraSpec
from factor_search.model.decoder import decoder_of

ADAPTER, HOLDER = "default", "model"


def add_adapters(model: PreTrainedModel, lora: LoraSpec) -> None:
    """Add an adapter to every target layer, and freeze all other weights.

    The second matrix of an adapter is zero at first, so the model's outputs do not change.

    Raises:
        SpecError: a target matches no linear layer.
        FinetuneError: peft is not installed.
    """
    peft = _peft()
    # With a configuration, peft would map the names of mixtures of experts from an older layout. The holder has none.
    holder = nn.ModuleDict({HOLDER: model})
    targets = [f"{HOLDER}.{place}" for place in linear_layers(model, lora.targets)]
    # No dropout: a few hundred steps over new tokens do not overfit.
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(config, holder, adapter_name=ADAPTER)


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Add each adapter's product to the weight of its layer in float32, and remove the adapter."""
    for place, layer in adapted_layers(model).items():
        base = layer.get_base_layer()
        update = layer.get_delta_weight(ADAPTER).float()  # alpha / r * B A, in the shape of the weight
        base.weight.data = base.weight.data.float() + update
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, base)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with an adapter, by their name in the model."""
    from peft.tuners.lora import LoraLayer

    return {place: module for place, module in model.named_modules() if isinstance(module, LoraLayer)}


def linear_layers(model: PreTrainedModel, targets: Sequence[str] | None = None) -> list[str]:
    """Return the names of the decoder's linear layers without the output layer.

    Args:
        model: a causal language model.
        targets: ends of names; only matching layers are returned. None returns all.

    Raises:
        SpecError: a target matches no layer.
    """
    inside = set(decoder_of(model).modules()) - {model.get_output_embeddings()}
    # Subclasses are excluded: routers of mixtures of experts return more than a product.
    places = [place for place, module in model.named_modules() if type(module) is nn.Linear and module in inside]
    if targets is None:
        return places
    for target in targets:
        if not any(_ends(place, target) for place in places):
            names = ", ".join(sorted({place.rpartition(".")[2] for place in places}))
            raise SpecError(f"method.targets: {target!r} matches no linear layer of the decoder: choose among {names}")
    return [place for place in places if any(_ends(place, target) for target in targets)]


def _ends(place: str, target: str) -> bool:
    return f".{place}".endswith(f".{target}")


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise FinetuneError("method 'lora' needs the package peft: pip install 'factor-search[finetune]'") from None
    return peft
