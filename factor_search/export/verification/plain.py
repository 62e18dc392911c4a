"""Loads a written model folder plainly, and compares it with the model and the factors of which it was made."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from factor_search.errors import ExportError, ModelLoadError, one_line
from factor_search.factors_file import FactorsFile
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOKENS = 24
SHARE = 1e-5
"""Largest difference that is allowed, as a share of the largest logit; in practice it is 0."""


class PlainCheck:
    """Compares logits of a short input, at the first positions and at the first ones beyond the original length."""

    def __init__(self, model: Callable[[], LoadedModel], file: FactorsFile, short: FactorsFile | None = None) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            model: loads or returns the model of which the folder is made.
            file: the factors.
            short: factors for inputs up to the original length, if they differ.
        """
        self._model = model
        self._file = file
        self._short = short or file

    @classmethod
    def of(cls, spec: ModelSpec, file: FactorsFile, short: FactorsFile | None = None) -> "PlainCheck":
        """A check that loads the model first, and the folder when the model is no longer in memory."""
        return cls(lambda: load_model(spec), file, short)

    def __call__(self, folder: Path) -> None:
        """Check a folder; without enough memory for that, a warning is logged.

        Raises:
            ExportError: it cannot be loaded, or computes something else.
            UnsupportedModelError: the model ignores factors (phimoe), so the folder would compute the same.
        """
        model = self._model()
        expected, tolerance = self._expected(model)
        update = {"id": str(folder), "revision": None, "original_length": self._file.model.original_length}
        spec = model.spec.model_copy(update=update)
        del model
        try:
            written = load_model(spec)
        except ModelLoadError as error:
            if _lacks_memory(error.__cause__):
                logger.warning("%s was not compared with its model: there is not enough memory for both", folder)
                return
            raise ExportError(f"the written model cannot be loaded: {one_line(error)}") from error
        for start, logits in expected.items():
            difference = (_logits(written.model, start) - logits).abs().max().item()
            if not difference <= tolerance:
                raise ExportError(
                    f"the written model computes something else: loaded by transformers, its logits at position "
                    f"{start} and after differ by up to {difference:.2g} from those of the model with the factors"
                )

    def _expected(self, loaded: LoadedModel) -> "tuple[dict[int, Tensor], float]":
        from factor_search.model.injection import Injector, probe

        probe(loaded.model, loaded.geometry)
        starts = {0: self._short.factors, self._file.model.original_length: self._file.factors}
        if not _takes_positions(loaded.model):
            del starts[self._file.model.original_length]
        expected, noise = {}, 0.0
        with Injector(loaded.model, loaded.geometry) as injector:
            for start, factors in starts.items():
                with injector.using([factors]):
                    expected[start] = _logits(loaded.model, start)
                    again = _logits(loaded.model, start)
                noise = max(noise, (again - expected[start]).abs().max().item())  # 0, except on some GPUs
        largest = max(logits.abs().max().item() for logits in expected.values())
        return expected, max(4 * noise, SHARE * largest)


def _lacks_memory(error: BaseException | None) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _takes_positions(model: "PreTrainedModel") -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _logits(model: "PreTrainedModel", start: int) -> "Tensor":
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(TOKENS, device=model.device) * 7919 % vocabulary)[None]
    positions = {"position_ids": torch.arange(start, start + TOKENS, device=model.device)[None]} if start else {}
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False, **positions).logits
    return logits.float().cpu()
