"""Stores evaluations in ``evaluations.jsonl``, so that none is computed twice."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from factor_search.errors import OutputError
from factor_search.factors import Factors
from factor_search.files.atomic import cannot_write
from factor_search.files.canonical_json import canonical_json
from factor_search.measure.evaluation import OUT_OF_MEMORY, Evaluation
from factor_search.measure.race import Race, rungs
from factor_search.measure.stored import settled
from factor_search.text.samples import SampleSet


class Ledger:
    """Evaluations by key, stored in a file to which only whole lines are appended."""

    def __init__(self, file: Path) -> None:
        """Open the file, read its evaluations, and cut off an incomplete last line.

        Raises:
            OutputError: the file cannot be read or written, another process writes it, or a whole line is damaged.
        """
        self._by_key: dict[str, Evaluation] = {}
        self._earlier: set[str] = set()
        try:
            self._stream = file.open("a+b", buffering=0)
        except OSError as error:
            raise cannot_write(file, error) from None
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read_all(file)
        except BlockingIOError:
            self._stream.close()
            raise OutputError(f"{file} is being written by another process") from None
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._stream.close()

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str) -> Evaluation | None:
        """Return the stored evaluation, or None; also None if it ran out of memory in an earlier process."""
        stored = self._by_key.get(key)
        return None if stored is None or (stored.outcome == OUT_OF_MEMORY and key in self._earlier) else stored

    def add(self, evaluation: Evaluation) -> None:
        """Append an evaluation, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        line = memoryview(canonical_json(evaluation.as_json()).encode() + b"\n")
        whole = self._stream.seek(0, os.SEEK_END)
        try:
            while line:  # a nearly full disk takes a part
                line = line[self._stream.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(whole)
            raise cannot_write(self._stream.name, error) from None
        self._by_key[evaluation.key] = evaluation
        self._earlier.discard(evaluation.key)

    def _read_all(self, file: Path) -> None:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                evaluation = Evaluation.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise OutputError(
                    f"{file} line {number} is not an evaluation: move the file away, or choose another --out"
                ) from None
            self._by_key[evaluation.key] = evaluation
        self._earlier = set(self._by_key)
        self._stream.truncate(len(whole))


class OneByOne(Protocol):
    """The interface of an evaluator in this process, which can continue a pruned evaluation."""

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """Return the address of a result."""
        ...

    def earlier_key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str | None:
        """Return the address under which earlier versions stored it, or None."""
        ...

    def evaluate(
        self, factors: Factors, samples: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        """Evaluate a candidate."""
        ...


class RecordedEvaluator:
    """An evaluator that returns stored evaluations from a ledger, and stores new ones there."""

    def __init__(self, evaluator: OneByOne, ledger: Ledger) -> None:
        self._evaluator = evaluator
        self._ledger = ledger

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """Return the evaluator's key."""
        return self._evaluator.key(factors, samples, documents)

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """Yield stored evaluations, and compute those that are missing."""
        for factors in candidates:
            evaluation, known = self._stored(factors, samples, race)
            if evaluation is None:
                evaluation = self._evaluator.evaluate(factors, samples, race=race, known=known)
                self._ledger.add(evaluation)
            yield evaluation

    def _stored(
        self, factors: Factors, samples: SampleSet, race: Race | None
    ) -> tuple[Evaluation | None, Evaluation | None]:
        total, key_of = len(samples.samples), partial(self.key, factors, samples)
        stored = {}
        for count in [*(rungs(total) if race else ()), total]:
            documents = None if count == total else count
            found = self._ledger.get(key_of(documents))
            if found is None:  # a folder that an earlier version began
                earlier = self._evaluator.earlier_key(factors, samples, documents)
                found = None if earlier is None else self._ledger.get(earlier)
            if found is not None:
                stored[count] = found
        return settled(race, stored, total, key_of)
