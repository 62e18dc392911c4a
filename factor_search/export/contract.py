"""The contract of an export: what is exported, and what the file of each engine provides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from factor_search.factors_file import FactorsFile
from factor_search.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from factor_search.model.geometry import Geometry


@dataclass(frozen=True)
class Source:
    """Factors with the model to which they belong."""

    file: FactorsFile
    """Factors for all inputs, or for those beyond the original length if there are ``short`` ones."""
    model: ModelSpec
    short: FactorsFile | None = None
    """Factors for inputs up to the original length; None uses the same factors for all inputs."""
    check: bool = True
    """Whether a model that was written is loaded and compared before it counts as written."""

    @cached_property
    def config(self) -> "PretrainedConfig":
        """The configuration of the model.

        Raises:
            ModelLoadError: there is none, or it is broken.
        """
        from factor_search.model.loading import load_config

        return load_config(self.model)

    @cached_property
    def geometry(self) -> "Geometry":
        """The rotary geometry of the model, with the original length for which the factors were found.

        Raises:
            UnsupportedModelError: see :func:`factor_search.model.configuration.read_geometry`.
        """
        from factor_search.model.configuration import read_geometry

        return read_geometry(self.config, self.file.model.original_length)

    def checkpoint(self) -> Path:
        """The folder with all files of the checkpoint, or the GGUF file; downloaded if it is on the hub.

        Raises:
            ModelLoadError: it cannot be downloaded.
        """
        from factor_search.model.loading import checkpoint_folder

        return checkpoint_folder(self.model)


@dataclass(frozen=True)
class Limit:
    """Something that a format cannot express, although it can express something near."""

    reason: str
    """What it cannot express, as a clause: ``the factors keep 16 initial tokens, which vLLM cannot express``."""
    nearest: str
    """The nearest that it can, after "the nearest is": ``without initial tokens``."""
    adapt: Callable[[Source], Source]
    """Returns what it can express."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: Sequence[Path]
    """The first holds the factors."""
    command: str | None = None
    """A command line that loads it, for a shell; None if there is none."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What the user should know, one sentence each."""
    source: Source | None = None
    """What was written: as asked, or the nearest to it."""

    @property
    def loaded(self) -> Path:
        """What an engine loads: the only file, or the folder of several."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent


class Engine(ABC):
    """An inference engine, or a family of engines that read one format. Importing one loads neither torch nor it."""

    name: ClassVar[str]
    """The word of the command line, of REST and of an export stage: ``huggingface``, ``vllm``, ``gguf``, ..."""
    title: ClassVar[str]
    """The engine's own name, for sentences: ``vLLM``."""
    writes: ClassVar[str]
    """What it writes, in half a sentence, for help texts."""
    holds_initial_tokens: ClassVar[bool] = False
    """Whether the format can express initial tokens."""
    document_name: ClassVar[str | None]
    """Name of the JSON file that carries the factors; None if they stand in files that hold weights or tables."""
    out_name: ClassVar[str] = "extended-model"
    """An ``--out`` for examples."""
    model_name: ClassVar[str | None] = None
    """A ``--model`` for examples, if it is another file than the checkpoint that was searched."""

    @abstractmethod
    def check(self, source: Source) -> None:
        """Refuse what cannot be exported in any form; reads the configuration at most.

        Raises:
            ExportError: says why, and what to do instead.
            FactorsError: the factors belong to another rotary geometry.
        """

    @abstractmethod
    def limits(self, source: Source) -> list[Limit]:
        """What of this the format cannot express, although something near; empty if all can be expressed."""

    def document(self, source: Source) -> dict[str, Any]:
        """The JSON that carries the factors, for formats that have a ``document_name``.

        Args:
            source: without limits.
        """
        raise NotImplementedError(f"{self.name} is not a JSON document")

    @abstractmethod
    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """A command line for a shell that loads what :meth:`write` has written for a model to ``out``."""

    @abstractmethod
    def write(self, source: Source, out: Path) -> Exported:
        """Write the export, whole or not at all.

        Args:
            source: without limits.
            out: what to write; a folder or a file, as the format has it.

        Raises:
            ExportError: it cannot be written in this format.
            OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
        """
