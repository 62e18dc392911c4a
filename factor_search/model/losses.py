"""Computes exact next-token losses of long sequences with the logits of only one chunk in memory."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from factor_search.model.decoder import decoder_of

REUSED_BYTES = 20 * 2**20
"""Bytes of a chunk of logits. The C library reuses blocks of up to 32 MB; it maps larger ones and zeroes every page."""
LEAST_TOKENS, MANY_TOKENS = 128, 512
"""If a chunk had fewer tokens than the first, the output layer would be slow; chunks then have the second number."""
LOSS_BLOCK = 2**20
"""Logits whose exponentials are computed at once, so that they stay in the cache."""
TOKENS_PER_PASS_ON_GPU = 16_384
"""Tokens of a batch of samples on a GPU; on a CPU, one sample at a time is as fast."""


def rows_per_pass(tokens: int, device: str) -> int:
    """Return how many windows of so many tokens are evaluated at once on a kind of device."""
    return 1 if device == "cpu" else max(1, TOKENS_PER_PASS_ON_GPU // tokens)


def why_not_finite(dtype: torch.dtype) -> str:
    """Return the likely cause of logits that are not finite, and what to do, without a full stop."""
    if dtype == torch.float16:
        return (
            "in float16, values beyond 65,504 overflow, as activations of models that were trained in bfloat16 do; "
            "give model.dtype bfloat16 or float32 (--set model.dtype=bfloat16, or --dtype bfloat16)"
        )
    return f"in {str(dtype).removeprefix('torch.')} nothing should overflow, so weights are damaged: copy them again"


@torch.inference_mode()
def token_losses(model: PreTrainedModel, input_ids: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Compute the negative log-likelihood of every token given the tokens before it.

    The decoder runs once over the whole sequence. Then the model's own forward runs again for one chunk of positions at
    a time, with the stored output of the decoder. Everything that the model does to its logits (soft-capping, scaling,
    a projection) is therefore included.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: token ids of shape (B, T), T >= 2.
        chunk_tokens: tokens, over all rows, with logits in memory at once; None chooses a fast number.

    Returns:
        float32 tensor of shape (B, T - 1), in nats; entry t is the loss of token t + 1.
    """
    rows, length = input_ids.shape
    targets = input_ids[:, 1:]
    losses = torch.empty(rows, length - 1, dtype=torch.float32, device=input_ids.device)
    chunk = max(1, (chunk_tokens or _fast_chunk(model)) // rows)
    with decoder_remembered(model) as view:
        for start in range(0, length - 1, chunk):
            stop = min(start + chunk, length - 1)
            logits = _logits(model, input_ids, view, slice(start, stop))
            losses[:, start:stop] = _cross_entropy(logits.flatten(0, 1), targets[:, start:stop].flatten()).view(
                rows, -1
            )
            del logits
    return losses


@torch.inference_mode()
def divergences(model: PreTrainedModel, input_ids: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Compute how far predictions are from those of other rows with the same tokens.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: token ids of shape (2 B, T), T >= 2; the first B rows are the reference, the others have the same
            tokens, and the model computes them differently (see :class:`factor_search.model.injection.Injector`).
        chunk_tokens: tokens, over all rows, with logits in memory at once; None chooses a fast number.

    Returns:
        float32 tensor of shape (B, T - 1), in nats; entry t is the Kullback-Leibler divergence
        sum_j p_j (log p_j - log q_j) of the predictions q of token t + 1 from the reference's p.
    """
    rows, length = input_ids.shape
    found = torch.empty(rows // 2, length - 1, dtype=torch.float32, device=input_ids.device)
    chunk = max(1, (chunk_tokens or _fast_chunk(model)) // rows)
    with decoder_remembered(model) as view:
        for start in range(0, length - 1, chunk):
            stop = min(start + chunk, length - 1)
            logits = _logits(model, input_ids, view, slice(start, stop)).float().log_softmax(-1)
            reference, other = logits.chunk(2)
            found[:, start:stop] = (reference.exp() * (reference - other)).sum(-1).clamp_min_(0.0)  # rounding
            del logits, reference, other
    return found


@dataclass(frozen=True)
class Predictions:
    """A model's predictions of some tokens of a text."""

    losses: Tensor
    """float32 of shape (B, S), in nats: negative log-likelihood of each token given those before it."""
    hits: Tensor
    """bool of shape (B, S): whether the token is the most likely one given those before it."""


@torch.inference_mode()
def predict(
    model: PreTrainedModel, input_ids: Tensor, positions: Sequence[int], *, chunk_tokens: int | None = None
) -> Predictions:
    """Predict some tokens with the losses of :func:`token_losses`; logits are computed only where they are needed.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: token ids of shape (B, T), T >= 2.
        positions: S positions of the tokens, each within [1, T), the same for all rows.
        chunk_tokens: tokens, over all rows, with logits in memory at once; None chooses a fast number.
    """
    rows, chunk = len(input_ids), max(1, (chunk_tokens or _fast_chunk(model)) // len(input_ids))
    wanted = torch.tensor(positions, dtype=torch.long, device=input_ids.device)
    losses = torch.empty(rows, len(positions), dtype=torch.float32, device=input_ids.device)
    hits = torch.empty(rows, len(positions), dtype=torch.bool, device=input_ids.device)
    with decoder_remembered(model) as view:
        for start in range(0, len(positions), chunk):
            part = wanted[start : start + chunk]
            targets = input_ids[:, part].flatten()
            logits = _logits(model, input_ids, view, part - 1).flatten(0, 1)  # position t - 1 predicts token t
            columns = slice(start, start + len(part))
            losses[:, columns] = _cross_entropy(logits, targets).view(rows, -1)
            hits[:, columns] = (logits.argmax(-1) == targets).view(rows, -1)
            del logits
    return Predictions(losses, hits)


def _logits(model: PreTrainedModel, input_ids: Tensor, view: "View", positions: slice | Tensor) -> Tensor:
    """Compute the model's logits at some positions: shape (B, positions, vocabulary)."""
    view.positions = positions
    logits: Tensor = model(input_ids=input_ids, use_cache=False, return_dict=True).logits
    return logits


def _fast_chunk(model: PreTrainedModel) -> int:
    tokens = REUSED_BYTES // (4 * model.get_input_embeddings().num_embeddings) // 32 * 32
    return int(tokens) if tokens >= LEAST_TOKENS else MANY_TOKENS


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute log sum_j exp(logit_j - logit_target) for each row: float32 of shape (rows,).

    The usual formula subtracts the maximum. Subtracting the target's logit instead saves a slow pass. If that overflows
    (at a loss above 88 nats), torch's cross-entropy is used.
    """
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = max(1, LOSS_BLOCK // vocabulary) if logits.device.type == "cpu" else rows
    for start in range(0, rows, block):
        part, target = logits[start : start + block].float(), targets[start : start + block]
        shifted = part - part.gather(-1, target[:, None])
        values = shifted.exp_().sum(-1).log_()
        if not values.isfinite().all():
            values = torch.nn.functional.cross_entropy(part, target, reduction="none")
        losses[start : start + block] = values
    return losses


@dataclass
class View:
    """The positions of the decoder's output that the head sees."""

    positions: slice | Tensor | None = None
    output: Any = None
    hidden: Tensor | None = None
    """The hidden states for the head, of shape (B, T, hidden size)."""


@contextmanager
def decoder_remembered(
    model: PreTrainedModel, keep: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Iterator[View]:
    """Let the decoder compute once within this context; later calls return its output at the wanted positions.

    Args:
        model: a causal language model.
        keep: converts the hidden states (B, T, hidden size) before they are stored; training cuts the graph here.
    """
    decoder = decoder_of(model)
    instance_forward = decoder.__dict__.get("forward")
    compute: Callable[..., Any] = decoder.forward
    view = View()

    def forward(*args: Any, **kwargs: Any) -> Any:
        if view.output is None:
            view.output = compute(*args, **kwargs)
            view.hidden = keep(view.output.last_hidden_state)
        output = copy.copy(view.output)
        assert view.hidden is not None
        output.last_hidden_state = view.hidden if view.positions is None else view.hidden[:, view.positions]
        return output

    decoder.forward = forward
    try:
        yield view
    finally:
        if instance_forward is None:
            del decoder.forward
        else:
            decoder.forward = instance_forward
