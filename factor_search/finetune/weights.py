"""Selects the weights of a model that are trained, their precision, and those with weight decay."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from factor_search.finetune.adapters import add_adapters, merge_adapters
from factor_search.finetune.spec import FinetuneSpec, LoraSpec


@dataclass(frozen=True)
class Weights:
    """The trained weights of one model, in float32."""

    trained: dict[str, nn.Parameter]
    """The weights by name; a tied weight occurs once."""
    undecayed: frozenset[str]
    """Names of the weights without weight decay: norms, biases and embeddings."""

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the parameter groups for an optimiser."""
        decayed = [weight for name, weight in self.trained.items() if name not in self.undecayed]
        others = [weight for name, weight in self.trained.items() if name in self.undecayed]
        groups = [(decayed, weight_decay), (others, 0.0)]
        return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


@contextmanager
def trainable(model: PreTrainedModel, spec: FinetuneSpec, precision: torch.dtype) -> Iterator[Weights]:
    """Prepare the model for training within this context.

    Trained weights are float32, since rounding would lose a small step on a bfloat16 weight. The other weights keep
    their precision, unless the computation is in float32. At the end of the context adapters are merged, all weights
    have their first precision again, and the model is in evaluation mode. After an error, the model cannot be used.

    Raises:
        SpecError: one of ``method.targets`` matches no linear layer.
        FinetuneError: peft is not installed.
    """
    dtypes = {weight: weight.dtype for weight in model.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(spec.method.kind == "full")
    lora = spec.method if isinstance(spec.method, LoraSpec) else None
    if lora:
        add_adapters(model, lora)
        _train_beside_adapters(model, lora)
    for weight in model.parameters():
        if weight.requires_grad or precision == torch.float32:
            weight.data = weight.data.float()  # buffers do not change: inverse frequencies are float32 in any model
    model.train()
    yield Weights(
        {name: weight for name, weight in model.named_parameters() if weight.requires_grad},
        frozenset(_undecayed(model)),
    )
    if lora:
        merge_adapters(model)
    for weight, dtype in dtypes.items():
        weight.grad = None
        weight.data = weight.data.to(dtype)
        weight.requires_grad_(True)
    model.eval()


def _train_beside_adapters(model: PreTrainedModel, lora: LoraSpec) -> None:
    """Train norms and embeddings too, since adapters alone do not learn long contexts (2309.12307, sec. 3.3)."""
    if lora.train_norms:
        for module in model.modules():
            if _is_norm(module):
                for weight in module.parameters(recurse=False):
                    weight.requires_grad_(True)
    if lora.train_embeddings:
        for weight in model.get_input_embeddings().parameters():
            weight.requires_grad_(True)


def _undecayed(model: PreTrainedModel) -> Iterator[str]:
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
    for place, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or _is_norm(module) or isinstance(module, nn.Embedding) or id(weight) in embeddings:
                yield f"{place}.{name}" if place else name


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm; the names of the norm classes of all architectures contain the word."""
    return "norm" in type(module).__name__.lower()
