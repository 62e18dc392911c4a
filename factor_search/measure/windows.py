"""Computes the windows of an evaluation, and the lengths at which perplexity is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One forward pass over the tokens [start, stop) of a document, which scores those from ``scored`` on."""

    start: int
    stop: int
    scored: int


def sliding_windows(tokens: int, window: int, stride: int | None) -> list[Window]:
    """Cut a document into windows so that every token but the first is scored exactly once.

    If the stride is the window, the first token of each window is not scored, since nothing precedes it there.

    Args:
        tokens: tokens of the document.
        window: largest number of tokens of a forward pass.
        stride: tokens by which the window moves; each token behind the first window is predicted from at least
            ``window - stride`` tokens. None uses the first window only.

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
        first = max(scored, start + 1)  # a window cannot predict its own first token
        if stop > first:
            windows.append(Window(start, stop, first))
            scored = stop
        if stop == tokens:
            break
    return windows


def doubling_lengths(original: int, target: int) -> list[int]:
    """Return the original length, twice that, ... and finally the target length, in tokens."""
    lengths = []
    while original < target:
        lengths.append(original)
        original *= 2
    return [*lengths, target]
