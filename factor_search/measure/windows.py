"""Computes the windows of an evaluation, and the lengths at which perplexity is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One forward pass over the tokens [start, stop) of a document, which scores those from ``scored`` on."""

    start: int
    """In a window behind the first, the tokenizer's prefix takes the place of as many tokens from here on."""
    stop: int
    scored: int


def sliding_windows(tokens: int, window: int, stride: int | None, prefix: int = 0) -> list[Window]:
    """Cut a document into windows so that every token but the first, or the prefix, is scored exactly once.

    Every window begins with the tokenizer's prefix, as the document does: models that were trained with a token at the
    beginning (BOS) predict texts without it much worse. The prefix is not scored, and counts in the window.

    If the stride is the window, the first token of each window is not scored, since nothing precedes it there, or the
    prefix takes its place; so for all tokens whose place the prefix takes in a window that overlaps with the one before
    by less than the prefix.

    Args:
        tokens: tokens of the document.
        window: largest number of tokens of a forward pass.
        stride: tokens by which the window moves; each token behind the first window is predicted from at least
            ``window - stride`` tokens, the prefix among them. None uses the first window only.
        prefix: tokens that the tokenizer puts before every text.

    Raises:
        ValueError: the stride is not within [1, window].
    """
    if stride is None:
        return [Window(0, min(tokens, window), max(1, prefix))]
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}: it must be between 1 and the window of {window} tokens")
    first_scored = max(1, prefix)  # a window cannot predict its own first token
    windows, scored = [], first_scored
    for start in range(0, tokens, stride):
        stop = min(start + window, tokens)
        first = max(scored, start + first_scored)
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
