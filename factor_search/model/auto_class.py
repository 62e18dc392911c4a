"""Chooses the class of transformers that loads a configuration as a model that predicts text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig, __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from factor_search.errors import UnsupportedModelError

CAUSAL = "AutoModelForCausalLM"


def auto_class(config: PretrainedConfig) -> Any:
    """Return the class whose ``from_pretrained`` and ``from_config`` make the model.

    A multi-modal model that is not known as a causal language model is loaded whole, and reads text alone.

    Raises:
        UnsupportedModelError: transformers knows no class that predicts text with it.
    """
    reason = why_not_loadable(config)
    if reason is not None:
        raise UnsupportedModelError(reason)
    return AutoModelForCausalLM if _is_causal(config) else AutoModelForMultimodalLM


@contextmanager
def own_code_forgotten() -> Iterator[None]:
    """After this context, let transformers forget which class of a checkpoint's own code goes with a configuration.

    It keeps that for the whole process. Another checkpoint with the same configuration code and other modeling code
    would silently be loaded with the code of the first.
    """
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    before = [set(mapping._extra_content) for mapping in mappings]
    try:
        yield
    finally:
        for mapping, known in zip(mappings, before, strict=True):
            for configuration in set(mapping._extra_content) - known:
                del mapping._extra_content[configuration]


def architecture_of(config: PretrainedConfig) -> str:
    """Return the model class that a configuration names, for messages and stored results."""
    named = config.architectures
    return str(named[0]) if isinstance(named, list | tuple) and named else type(config).__name__


def why_not_loadable(config: PretrainedConfig) -> str | None:
    """Return why no class predicts text with a configuration, as a sentence without its full stop; None if one does."""
    architecture = architecture_of(config)
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{architecture} is an encoder with a decoder, which does not continue a text by itself: give a causal "
            "language model"
        )
    if _is_causal(config) or type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return None
    return (
        f"transformers {__version__} knows {architecture} (model type {config.model_type!r}) neither as a causal "
        "language model nor as a multi-modal one: give the checkpoint of its language model alone, if there is one"
    )


def _is_causal(config: PretrainedConfig) -> bool:
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or CAUSAL in (getattr(config, "auto_map", None) or {})
