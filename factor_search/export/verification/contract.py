"""What the scorer of each engine provides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from factor_search.spec import ModelSpec


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

    def of(self, model: ModelSpec) -> "Scorer":
        """The scorer for exports of a model: some do not contain it, and some need its Python code."""
        return self

    def exact(self, exported: Path) -> bool:
        """Whether it computes in float32 with the weights that transformers has, so that nothing but the rounding of
        float32 explains a difference. Not so with quantised weights that it does not widen.

        Args:
            exported: as for :meth:`log_probabilities`.
        """
        return True

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
