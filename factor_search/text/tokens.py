"""Text to token ids, each document once; the result is kept on disk."""

import hashlib
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factor_search.errors import DataError, one_line
from factor_search.files.atomic import write_atomically
from factor_search.files.cache import cache_folder

TokenIds = NDArray[np.int64]


class CachedTokenizer:
    """Turns a document into token ids, beginning with the token that the tokenizer itself puts at a beginning."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix: list[int] = _beginning(tokenizer)
        """What it puts at a beginning; empty for many."""
        self._identity = _identity(tokenizer, self.prefix)
        self._folder = cache_folder("tokens")

    def __call__(self, text: str) -> TokenIds:
        """Token ids of shape (tokens,).

        Raises:
            DataError: the tokenizer fails on this text.
        """
        digest = hashlib.sha256(self._identity + text.encode("utf-8", "surrogatepass")).hexdigest()
        file = self._folder / f"{digest}.npy"
        try:
            stored: TokenIds = np.load(file, allow_pickle=False).astype(np.int64)
            return stored
        except (OSError, ValueError, EOFError):
            pass  # not there, or not whole: derive it
        tokens = np.array([*self.prefix, *self.ids(text)], dtype=np.int32)
        content = io.BytesIO()
        np.save(content, tokens, allow_pickle=False)
        write_atomically(file, content.getvalue())
        return tokens.astype(np.int64)

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text, without what belongs at a beginning; not kept.

        Raises:
            DataError: the tokenizer fails on this text.
        """
        try:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:  # a tokenizer of any make
            raise DataError(f"the tokenizer fails on a document: {one_line(error)}") from error

    def text(self, ids: TokenIds) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _beginning(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer by itself puts before a text."""
    with_special = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    without = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return with_special[:start]
    return []


def _identity(tokenizer: Any, prefix: list[int]) -> bytes:
    """What token ids depend on besides the text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:
        content = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(f"{content}{prefix}".encode()).digest()
