"""Converts text to token ids, and caches the result on disk."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factor_search.errors import DataError, one_line
from factor_search.files.atomic import write_atomically
from factor_search.files.cache import cache_folder

TokenIds = NDArray[np.int64]

LONG_TEXT = 2**20
"""Characters from which on a text is not tokenised whole if only its first tokens are needed."""
MARGIN = 4096
"""Tokens behind those that are needed. A token depends on the text behind it, but only within a word or a run."""


class CachedTokenizer:
    """Converts documents to token ids, which begin with the special tokens that the tokenizer puts before a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix: list[int] = _beginning(tokenizer)
        """Special tokens that the tokenizer puts before a text; empty for many tokenizers."""
        self._identity = _identity(tokenizer, self.prefix)
        self._folder = cache_folder("tokens")

    def __call__(self, text: str) -> TokenIds:
        """Return the token ids of a document, int64 of shape (tokens,).

        Raises:
            DataError: the tokenizer fails on this text.
        """
        digest = hashlib.sha256(self._identity + text.encode("utf-8", "surrogatepass")).hexdigest()
        file = self._folder / f"{digest}.npy"
        try:
            stored: TokenIds = np.load(file, allow_pickle=False).astype(np.int64)
            return stored
        except (OSError, ValueError, EOFError):
            pass  # it is not cached, or the file is damaged
        tokens = np.array([*self.prefix, *self.ids(text)], dtype=np.int32)
        content = io.BytesIO()
        np.save(content, tokens, allow_pickle=False)
        write_atomically(file, content.getvalue())
        return tokens.astype(np.int64)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens and without the cache.

        Raises:
            DataError: the tokenizer fails on this text.
        """
        try:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:  # tokenizers raise errors of any type
            raise DataError(f"the tokenizer fails on a document: {one_line(error)}") from error

    def chat(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a user's message that begins with a text, and of what follows its end.

        What follows is the beginning of the answer; the first are the whole beginning, special tokens included.

        Raises:
            DataError: there is no chat template, it fails, or it does not keep the text as it is.
        """
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise DataError("the tokenizer has no chat template: ask without one")
        place = "4711 4711"
        try:
            message = [{"role": "user", "content": text + place}]
            whole = str(self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates are programs, and raise errors of any type
            raise DataError(f"the chat template of the tokenizer fails: {one_line(error)}") from error
        before, found, behind = whole.partition(place)
        if not found:
            raise DataError("the chat template of the tokenizer changes the text of a message")
        return self.ids(before), self.ids(behind)

    def text(self, ids: TokenIds) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def first_tokens(tokenize: Callable[[str], TokenIds], text: str, count: int) -> TokenIds:
    """Return at least the first ``count`` token ids of a text, or all if there are fewer.

    The memory of a tokenizer is about 200 bytes a token, so the end of a very long text is left out.
    """
    characters = max(LONG_TEXT, 8 * (count + MARGIN))
    while characters < len(text):
        tokens = tokenize(text[:characters])
        if len(tokens) >= count + MARGIN:
            return tokens[: len(tokens) - MARGIN]
        characters *= 4
    return tokenize(text)


def _beginning(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text."""
    with_special = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    without = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return with_special[:start]
    return []


def _identity(tokenizer: Any, prefix: list[int]) -> bytes:
    """Return a hash of what token ids depend on besides the text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:
        content = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(f"{content}{prefix}".encode()).digest()
