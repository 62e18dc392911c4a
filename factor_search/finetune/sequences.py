"""Builds training sequences from documents: their tokens, positions, and whether their RoPE is rescaled.

The sequences of step k depend only on the documents, the specification and k, so a resumed run reads the same ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factor_search.errors import DataError
from factor_search.files.canonical_json import sha256_of
from factor_search.finetune.spec import FinetuneSpec
from factor_search.text.tokens import TokenIds

Ints = NDArray[np.int64]
NO_TARGET = -100
"""The target of a document's last token, which has no next token; cross-entropy ignores it."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of one pass through the model; all arrays are int64 of shape (rows, tokens)."""

    input_ids: Ints
    position_ids: Ints
    """Positions, which increase within a row, from 0 or more to less than the target length."""
    targets: Ints
    """The token that follows each token in its document, or ``NO_TARGET``."""
    rescaled: bool
    """Whether the factors are used; otherwise the model's own RoPE is."""


class Sequences:
    """All batches of a fine-tuning."""

    def __init__(
        self,
        documents: Sequence[TokenIds],
        spec: FinetuneSpec,
        original_length: int,
        target_length: int,
        prefix: Sequence[int] = (),
    ) -> None:
        """Select the documents that are long enough.

        Args:
            documents: token ids, one array of int64 of shape (tokens,) per document.
            spec: form, lengths and seed.
            original_length: original length of the model in tokens.
            target_length: target length in tokens.
            prefix: tokens that the tokenizer puts before every text (BOS). Every sequence begins with them: they take
                the place of its first tokens, at the first positions, and are not targets.

        Raises:
            DataError: no document is long enough; the message gives the length needed.
            SpecError: the training length does not fit the target length.
        """
        self._spec, self._target_length = spec, target_length
        self._prefix = np.asarray(prefix, dtype=np.int64)
        self.length = spec.sequence_length(original_length, target_length)
        """Tokens of a sequence with rescaled RoPE."""
        self._short_length = min(original_length, self.length)
        self.passes = spec.passes(self.length)
        """Batches of one step."""
        needed = spec.document_tokens(original_length, target_length)
        self._documents = [np.asarray(document, dtype=np.int64) for document in documents if len(document) >= needed]
        if not self._documents:
            longest = max((len(document) for document in documents), default=0)
            raise DataError(
                f"none of the {len(documents)} documents has the {needed} tokens that data_form {spec.data_form!r} "
                f"needs here: the longest has {longest}; give longer documents"
                + ("" if spec.data_form == "pose" else ", or use 'pose', which needs the training length only")
            )
        self.left_out = len(documents) - len(self._documents)
        """Documents that are too short."""
        self._ends = np.cumsum([len(document) for document in self._documents])
        hashes = [hashlib.sha256(document.astype("<i8").tobytes()).hexdigest() for document in documents]
        self.sha256 = sha256_of({"documents": hashes, "prefix": list(prefix)} if prefix else hashes)
        """The hash of all token ids, in order, and of the prefix."""

    def check_vocabulary(self, vocabulary: int) -> None:
        """Check that a model with so many embeddings has one for every token id.

        Raises:
            DataError: it has not, so the tokens belong to another tokenizer.
        """
        smallest = min(int(document.min()) for document in self._documents)
        largest = max(int(document.max()) for document in self._documents)
        if smallest < 0 or largest >= vocabulary:
            raise DataError(
                f"the documents have token ids from {smallest} to {largest}, but the model knows 0 to "
                f"{vocabulary - 1}: tokenise the documents with the model's own tokenizer"
            )

    def step(self, step: int) -> list[Batch]:
        """Return the batches of a step; steps are counted from 0."""
        return [self._batch(step, number) for number in range(self.passes)]

    def _batch(self, step: int, number: int) -> Batch:
        generator = np.random.default_rng([self._spec.seed, step, number])
        share = self._spec.mixed_window
        rescaled = share is None or generator.random() >= share
        rows = self._spec.batch_size
        if not rescaled:  # as many tokens as a long batch, so that all passes need the same memory
            rows = max(1, rows * self.length // self._short_length)
        drawn = [self._row(generator, rescaled) for _ in range(rows)]
        input_ids, position_ids, targets = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Batch(input_ids, position_ids, targets, rescaled)

    def _row(self, generator: np.random.Generator, rescaled: bool) -> tuple[Ints, Ints, Ints]:
        """Draw one sequence: its token ids, position ids and targets."""
        # Documents are drawn in proportion to their tokens.
        document = self._documents[np.searchsorted(self._ends, generator.integers(self._ends[-1]), side="right")]
        if rescaled:
            places, positions = self._places(generator)
        else:
            places = positions = np.arange(self._short_length)
        places = places + generator.integers(0, len(document) - self._span(rescaled) + 1)
        following = np.minimum(places + 1, len(document) - 1)
        targets = np.where(places + 1 < len(document), document[following], NO_TARGET)
        return self._begun(document[places], positions, targets)

    def _begun(self, ids: Ints, positions: Ints, targets: Ints) -> tuple[Ints, Ints, Ints]:
        """Let a sequence begin with the prefix."""
        count = len(self._prefix)
        if count:
            positions = positions.copy()
            ids[:count], positions[:count], targets[: count - 1] = self._prefix, np.arange(count), NO_TARGET
        return ids, positions, targets

    def _span(self, rescaled: bool) -> int:
        """Return the number of consecutive tokens of a document from which a sequence is taken."""
        if not rescaled:
            return self._short_length
        return self._target_length if self._spec.data_form == "segments" else self.length

    def _places(self, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Return the places of a sequence's tokens in the text, and their position ids."""
        tokens = np.arange(self.length)
        form, chunks = self._spec.data_form, self._spec.chunks
        if form == "full":
            return tokens, tokens
        # 0 <= u_0 <= u_1 <= ... <= target - length: chunk j is shifted by u_j (2309.10400, sec. 3.2, where u_0 = 0)
        drawn = chunks - 1 if form == "pose" else chunks
        shifts = np.zeros(chunks, dtype=np.int64)
        shifts[chunks - drawn :] = np.sort(generator.integers(0, self._target_length - self.length + 1, size=drawn))
        positions = tokens + shifts[tokens * chunks // self.length]
        return (tokens, positions) if form == "pose" else (positions, positions)
