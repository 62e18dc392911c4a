"""Scores text with mlx-lm."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from factor_search.errors import VerificationError, one_line
from factor_search.export.verification.contract import Scorer
from factor_search.files.json_documents import read_json


class MLXScorer(Scorer):
    """mlx-lm with all weights in float32; on machines other than Macs it needs the package mlx-cpu or mlx-cuda."""

    name = "mlx"
    format = "mlx"
    package = "mlx-lm"

    def version(self) -> str | None:
        """The version of the installed package; None if it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def exact(self, exported: Path) -> bool:
        """Whether the weights are not quantised; those that are not become float32."""
        return "quantization" not in read_json(exported / "config.json", VerificationError)

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Run the text in chunks with a key-value cache, and read the logits before each position.

        Raises:
            VerificationError: the package is not installed, or cannot load or run the model.
        """
        try:
            import mlx.core as mx
            from mlx_lm.models.cache import make_prompt_cache
            from mlx_lm.utils import load_model
        except ImportError as error:
            raise VerificationError(
                f"mlx-lm cannot be loaded ({one_line(error)}): pip install mlx-lm mlx-cpu"
            ) from None
        scores: dict[int, float] = {}
        try:
            model, _ = load_model(exported)
            model.set_dtype(mx.float32)
            cache = make_prompt_cache(model)
            for begin in range(0, max(positions), _CHUNK):
                chunk = list(ids[begin : min(begin + _CHUNK, max(positions))])
                logits = model(mx.array([chunk]), cache=cache)[0]
                for position in positions:
                    if begin < position <= begin + len(chunk):
                        row = logits[position - 1 - begin].astype(mx.float32)
                        scores[position] = float((row[ids[position]] - mx.logsumexp(row)).item())
                mx.eval(*[entry.state for entry in cache])
        except Exception as error:  # its models raise whatever Python raises
            raise VerificationError(f"mlx-lm cannot run {exported}: {one_line(error)}") from None
        return [scores[position] for position in positions]


_CHUNK = 512
"""Tokens of one forward pass: logits of all of them are in memory."""
