"""Which weights of a model are trained, in which precision, and which of them decay."""

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
    """The trained weights of one model, float32."""

    trained: dict[str, nn.Parameter]
    """By name; a tied weight is there once."""
    undecayed: frozenset[str]
    """Names of those that weight decay leaves alone: norms, biases and embeddings."""

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameter groups for an optimiser."""
        decayed = [weight for name, weight in self.trained.items() if name not in self.undecayed]
        others = [weight for name, weight in self.trained.items() if name in self.undecayed]
        groups = [(decayed, weight_decay), (others, 0.0)]
        return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


@contextmanager
def trainable(model: PreTrainedModel, spec: FinetuneSpec, precision: torch.dtype) -> Iterator[Weights]:
    """Within this context the model is ready for training; after it, it is a plain model with the weights it has then.

    Trained weights are float32 within, since a small step on a bfloat16 weight is lost in rounding; the others keep
    their precision, unless the computation is in float32. After it all have the precision they came with, adapters are
    merged, and the model is in evaluation mode. What leaves the context by an error is not fit for use.

    Raises:
        SpecError: one of ``method.targets`` fits no linear layer.
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
            weight.data = weight.data.float()  # buffers stay: inverse frequencies are float32 in any model
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
    """Norms and embeddings are few weights, and adapters alone do not learn long contexts (2309.12307, sec. 3.3)."""
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
    """Every architecture has norms of its own; their classes share the word."""
    return "norm" in type(module).__name__.lower()
