"""Low-rank adapters (LoRA, 2106.09685) put into a live model by peft, and merged into its plain weights."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from factor_search.errors import FinetuneError, SpecError, one_line
from factor_search.finetune.spec import LoraSpec
from factor_search.models import decoder_of

ADAPTER = "default"


def add_adapters(model: PreTrainedModel, lora: LoraSpec) -> None:
    """Put an adapter into every target; from then on all other weights are frozen.

    An adapter's second matrix is zero at first, so the model's outputs do not change.

    Raises:
        SpecError: the targets fit no layer, or one that peft has no adapter for.
        FinetuneError: peft is not installed.
    """
    peft = _peft()
    targets = lora.targets or linear_layers(model)
    # A rank or alpha of every layer is the same; dropout would make a short fine-tuning slower to learn.
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    try:
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise SpecError(f"method.targets {lora.targets}: {one_line(error)}") from None
    finally:
        if "peft_config" in model.__dict__:  # left behind, it makes the model pass for one of peft's
            del model.peft_config


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Add each adapter's product to its layer's weight, in float32, and take the adapter out."""
    for place, layer in adapted_layers(model).items():
        base = layer.get_base_layer()
        update = layer.get_delta_weight(ADAPTER).float()  # alpha / r * B A: shape of the weight
        base.weight.data = base.weight.data.float() + update
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, base)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by their place in the model."""
    from peft.tuners.lora import LoraLayer

    return {place: module for place, module in model.named_modules() if isinstance(module, LoraLayer)}


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Places of all linear layers of the decoder, which the output layer is no part of."""
    decoder = decoder_of(model)
    inside = set(decoder.modules()) - {model.get_output_embeddings()}
    return [place for place, module in model.named_modules() if isinstance(module, nn.Linear) and module in inside]


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise FinetuneError("method 'lora' needs the package peft: pip install 'factor-search[finetune]'") from None
    return peft
