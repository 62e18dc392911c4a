"""Documents to training sequences: which tokens, at which positions, with the model's own RoPE or the rescaled one.

What step k reads is a function of the documents, the specification and k alone, so a resumed run reads the same.
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
"""Where a document ends, and what follows is not known; cross-entropy leaves it out."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one pass through the model reads; all arrays are int64 of shape (rows, tokens)."""

    input_ids: Ints
    position_ids: Ints
    """Increasing within a row, from 0 or more to less than the target length."""
    targets: Ints
    """The token that follows each one in its document, or ``NO_TARGET``."""
    rescaled: bool
    """Whether the factors are in force; otherwise the model's own RoPE is."""


class Sequences:
    """All batches of a fine-tuning."""

    def __init__(
        self, documents: Sequence[TokenIds], spec: FinetuneSpec, original_length: int, target_length: int
    ) -> None:
        """Leave out the documents that are too short.

        Args:
            documents: token ids, int64 of shape (tokens,), one array a document.
            spec: form, lengths and seed.
            original_length: tokens the model was trained for.
            target_length: tokens of context wanted.

        Raises:
            DataError: no document is long enough; says how long they must be.
            SpecError: the training length does not fit the target length.
        """
        self._spec, self._target_length = spec, target_length
        self.length = spec.sequence_length(original_length, target_length)
        """Tokens of a sequence with the factors in force."""
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
        self.sha256 = sha256_of(hashes)
        """Hash of all token ids, in order."""

    def check_vocabulary(self, vocabulary: int) -> None:
        """Refuse token ids that a model of so many words has no embedding for.

        Raises:
            DataError: the tokens are another tokenizer's.
        """
        smallest = min(int(document.min()) for document in self._documents)
        largest = max(int(document.max()) for document in self._documents)
        if smallest < 0 or largest >= vocabulary:
            raise DataError(
                f"the documents have token ids from {smallest} to {largest}, but the model knows 0 to "
                f"{vocabulary - 1}: they are another tokenizer's"
            )

    def step(self, step: int) -> list[Batch]:
        """The batches of a step, counted from 0."""
        return [self._batch(step, number) for number in range(self.passes)]

    def _batch(self, step: int, number: int) -> Batch:
        generator = np.random.default_rng([self._spec.seed, step, number])
        share = self._spec.mixed_window
        rescaled = share is None or generator.random() >= share
        rows = self._spec.batch_size
        if not rescaled:  # as many tokens as a long batch, so that passes cost the same memory
            rows = max(1, rows * self.length // self._short_length)
        drawn = [self._row(generator, rescaled) for _ in range(rows)]
        input_ids, position_ids, targets = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Batch(input_ids, position_ids, targets, rescaled)

    def _row(self, generator: np.random.Generator, rescaled: bool) -> tuple[Ints, Ints, Ints]:
        """Token ids, position ids and targets of one sequence."""
        # A token in a long document is drawn as often as one in a short one.
        document = self._documents[np.searchsorted(self._ends, generator.integers(self._ends[-1]), side="right")]
        if rescaled:
            places, positions = self._places(generator)
        else:
            places = positions = np.arange(self._short_length)
        places = places + generator.integers(0, len(document) - self._span(rescaled) + 1)
        following = np.minimum(places + 1, len(document) - 1)
        targets = np.where(places + 1 < len(document), document[following], NO_TARGET)
        return document[places], positions, targets

    def _span(self, rescaled: bool) -> int:
        """Tokens of a document between which a sequence's tokens lie."""
        if not rescaled:
            return self._short_length
        return self._target_length if self._spec.data_form == "segments" else self.length

    def _places(self, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Where a sequence's tokens stand in the text, and which positions they are given."""
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
