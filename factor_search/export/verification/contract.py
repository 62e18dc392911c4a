"""What the scorer of each engine provides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class Scorer(ABC):
    """An installed inference engine that scores text. Importing one does not load the engine."""

    name: ClassVar[str]
    """The word of ``verify --engine``: ``llama.cpp``, ``mlx``, ``onnx``, ``vllm``, ``transformers``."""
    format: ClassVar[str]
    """The export format that it loads; a key of :data:`factor_search.export.registry.ENGINES`."""
    package: ClassVar[str]
    """The PyPI package that has it, for the message if it is not installed."""

    @abstractmethod
    def version(self) -> str | None:
        """The version of the installed engine; None if it is not installed. Does not load it."""

    def of(self, model: str) -> "Scorer":
        """The scorer for exports that apply to a model without containing it; most contain it.

        Args:
            model: folder or hub id.
        """
        return self

    @abstractmethod
    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Score tokens of one text with the engine, in float32 where it offers that.

        Args:
            exported: what the format's export wrote: a folder or a file.
            ids: tokens of the text, without any added by a tokenizer.
            positions: places p in ``ids``, each at least 1.

        Returns:
            ``log p(ids[p] | ids[:p])`` for each of the positions, in nats.

        Raises:
            VerificationError: the engine cannot load or run it; says why.
        """
