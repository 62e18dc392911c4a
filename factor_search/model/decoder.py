"""Finds the decoder of a causal language model."""

from torch import nn
from transformers import PreTrainedModel

from factor_search.errors import UnsupportedModelError


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the decoder of a causal language model, which computes hidden states from token ids.

    Raises:
        UnsupportedModelError: the decoder is not a separate module.
    """
    for candidate in (model.get_decoder(), getattr(model, "model", None), model.base_model):
        if isinstance(candidate, nn.Module) and candidate is not model:
            return candidate
    raise UnsupportedModelError(f"{type(model).__name__} does not separate its decoder from its head")
