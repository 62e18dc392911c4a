"""Computes the loss and gradients of one batch with given factors, with one chunk of logits in memory at a time."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from factor_search.factors import Factors
from factor_search.finetune.sequences import NO_TARGET, Batch
from factor_search.model.injection import Injector
from factor_search.model.losses import decoder_remembered

CHUNK_LOGITS = 2**26
"""Logits in memory at once: 256 MiB of float32, and the same for their gradients."""


def add_gradients(
    model: PreTrainedModel,
    injector: Injector,
    factors: Factors,
    batch: Batch,
    *,
    weight: float,
    precision: torch.dtype,
    chunk_tokens: int | None = None,
) -> float:
    """Run one batch forwards and backwards, and add its gradients to the existing ones.

    The decoder runs forwards once. Then the head runs forwards and backwards for one chunk of positions at a time,
    which gives the gradients of the hidden states. One backward pass of the decoder completes the gradients of the
    whole loss.

    Args:
        model: a causal language model in training mode.
        injector: the entered injector of this model.
        factors: the factors to use if the batch is rescaled.
        batch: the batch.
        weight: multiplies the gradients; 1 / (number of targets of a step) gives the gradients of its mean loss.
        precision: precision of the computation; bfloat16 uses autocast.
        chunk_tokens: tokens, over all rows, with logits in memory at once; None uses at most 256 MiB.

    Returns:
        The sum of the losses of all targets, in nats.
    """
    device = model.device
    input_ids = torch.from_numpy(batch.input_ids).to(device)  # Shape: (B, T), as all three
    position_ids = torch.from_numpy(batch.position_ids).to(device)
    targets = torch.from_numpy(batch.targets).to(device)
    inputs = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        # Without a mask, transformers takes skipping positions for packed sequences that do not attend to each other.
        "attention_mask": torch.ones_like(input_ids),
        "use_cache": False,
        "return_dict": True,
    }
    rows, length = input_ids.shape
    if chunk_tokens is None:
        chunk_tokens = CHUNK_LOGITS // model.get_input_embeddings().num_embeddings
    chunk = max(1, chunk_tokens // rows)
    total = torch.zeros((), dtype=torch.float64, device=device)
    whole: list[Tensor] = []

    def cut(hidden: Tensor) -> Tensor:
        whole.append(hidden)
        return hidden.detach().requires_grad_()

    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    # The backward pass needs the factors too: checkpointed layers compute their rotations again.
    with injector.using([factors] if batch.rescaled else []), decoder_remembered(model, cut) as view:
        for start in range(0, length, chunk):
            view.positions = slice(start, start + chunk)
            with autocast:
                logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1),
                targets[:, view.positions].flatten(),
                ignore_index=NO_TARGET,
                reduction="sum",
            )
            torch.autograd.backward(loss * weight)
            total += loss.detach()
            del logits, loss
        assert view.hidden is not None
        torch.autograd.backward(whole[0], view.hidden.grad)
    return total.item()
