"""Exact next-token loss of long sequences, without ever holding the logits of more than a chunk of them."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from factor_search.models import decoder_of

REUSED_BYTES = 20 * 2**20
"""Blocks of up to 32 MB are reused by the C library; larger ones are mapped, and zeroed page by page, every time."""
LEAST_TOKENS, MANY_TOKENS = 128, 512
"""With fewer rows than the first the product with the output layer gets slow; the second is taken instead."""
LOSS_BLOCK = 2**20
"""Logits whose exponentials are taken at once, so that they stay in the cache."""


@torch.inference_mode()
def token_losses(model: PreTrainedModel, input_ids: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Negative log-likelihood of every token given those before it.

    The decoder runs once over the whole sequence. Then the model's own forward is replayed with the decoder answering
    from memory, a chunk of positions at a time, so whatever the model does to its logits (soft-capping, scaling, an
    output projection of its own) is done here as well.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: token ids of shape (B, T), T >= 2.
        chunk_tokens: how many tokens, over all rows, have their logits in memory at once; None: what is fast.

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


@dataclass(frozen=True)
class Predictions:
    """What a model makes of some tokens of a text."""

    losses: Tensor
    """float32 of shape (B, S), in nats: negative log-likelihood of each token given those before it."""
    hits: Tensor
    """bool of shape (B, S): whether the token is the most likely one given those before it."""


@torch.inference_mode()
def predict(
    model: PreTrainedModel, input_ids: Tensor, positions: Sequence[int], *, chunk_tokens: int | None = None
) -> Predictions:
    """Losses of some tokens: those of :func:`token_losses`, but the output layer sees only what predicts them.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: token ids of shape (B, T), T >= 2.
        positions: S positions of the tokens, each within [1, T), the same for all rows.
        chunk_tokens: how many tokens, over all rows, have their logits in memory at once; None: what is fast.
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
    """The model's logits at some positions, of shape (B, positions, vocabulary)."""
    view.positions = positions
    logits: Tensor = model(input_ids=input_ids, use_cache=False, return_dict=True).logits
    return logits


def _fast_chunk(model: PreTrainedModel) -> int:
    tokens = REUSED_BYTES // (4 * model.get_input_embeddings().num_embeddings) // 32 * 32
    return int(tokens) if tokens >= LEAST_TOKENS else MANY_TOKENS


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """log sum_j exp(logit_j - logit_target) for each row: float32 of shape (rows,).

    The target takes the place of the maximum that is usually subtracted, which spares a slow pass; where that
    overflows (a loss beyond 88 nats), the usual way is taken.
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
    """Which positions of the decoder's output the head gets to see."""

    positions: slice | Tensor | None = None
    output: Any = None
    hidden: Tensor | None = None
    """What the head sees of it: (B, T, hidden size)."""


@contextmanager
def decoder_remembered(
    model: PreTrainedModel, keep: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Iterator[View]:
    """Let the decoder compute once; answer later calls from memory, cut to the wanted positions.

    Args:
        model: a causal language model.
        keep: what is remembered of the hidden states (B, T, hidden size); training cuts the graph here.
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


@dataclass(frozen=True)
class Window:
    """One forward pass over part of a document: tokens [start, stop), of which those from ``scored`` on count."""

    start: int
    stop: int
    scored: int


def sliding_windows(tokens: int, window: int, stride: int | None) -> list[Window]:
    """Cut a document so that every token but the first is scored exactly once (but the first of each window, where
    the stride is the window).

    Args:
        tokens: length of the document.
        window: tokens a forward pass sees at most.
        stride: tokens by which the window moves; each token after the first window is then predicted from at least
            ``window - stride`` tokens before it. None: only the first window is used.

    Raises:
        ValueError: the stride is not within [1, window].
    """
    if stride is None:
        return [Window(0, min(tokens, window), 1)]
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}: it must be between 1 and the window of {window} tokens")
    windows, scored = [], 1
    for start in range(0, tokens, stride):
        stop = min(start + window, tokens)
        first = max(scored, start + 1)  # a window that begins where the last one ended cannot predict its first token
        if stop > first:
            windows.append(Window(start, stop, first))
            scored = stop
        if stop == tokens:
            break
    return windows


def doubling_lengths(original: int, target: int) -> list[int]:
    """The original length, twice that, ... and at last the target, in tokens."""
    lengths = []
    while original < target:
        lengths.append(original)
        original *= 2
    return [*lengths, target]


@dataclass(frozen=True)
class Summary:
    """Perplexity over documents, with its uncertainty."""

    perplexity: float
    """exp of the mean loss per scored token."""
    standard_error: float
    """Standard error of the perplexity over documents (delta method); NaN for a single document."""
    loss: float
    """Mean loss in nats per scored token."""
    tokens: int
    """Tokens scored."""
    documents: int


def summarise(losses: Sequence[float], tokens: Sequence[int]) -> Summary:
    """Summarise documents' mean losses (nats per token), each weighted by its number of predicted tokens."""
    mean, error = _weighted_mean(losses, tokens)
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return Summary(perplexity, perplexity * error, mean, sum(tokens), len(losses))


def paired_difference(
    losses: Sequence[float], reference: Sequence[float], tokens: Sequence[int]
) -> tuple[float, float]:
    """Mean of ``losses - reference`` per token and its standard error over documents (NaN for a single document).

    Documents weigh by their tokens, so the mean is the difference of the two summaries' losses, in nats.
    """
    differences = [a - b for a, b in zip(losses, reference, strict=True)]
    return _weighted_mean(differences, tokens)


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> tuple[float, float]:
    """Ratio estimator sum(w v) / sum(w), and its standard error over documents drawn at random."""
    total, n = sum(weights), len(values)
    mean = math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    spread = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    return mean, math.sqrt(spread * n / (n - 1)) / total if n > 1 else math.nan
