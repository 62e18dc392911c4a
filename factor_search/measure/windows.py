"""Where the windows of an evaluation lie, and which lengths a ladder has."""

from dataclasses import dataclass


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
