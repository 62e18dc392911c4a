"""What several engines cannot express: refused in any form, or a limit with the nearest that they can."""

from collections.abc import Callable, Collection
from dataclasses import replace

from factor_search.errors import ExportError
from factor_search.export.contract import Limit, Source
from factor_search.export.huggingface import HuggingFace
from factor_search.files.gguf import is_gguf


def static(source: Source) -> Source:
    """The factors for long inputs, for all inputs."""
    return source if source.short is None else replace(source, short=None)


def switching_limit(source: Source, reason: str) -> list[Limit]:
    """The limit of engines that cannot use other factors for short inputs.

    Args:
        source: what is exported.
        reason: why not, as a clause.
    """
    return [Limit(reason, "the long factors for all inputs", static)] if source.short is not None else []


def with_attention_factor(value: float) -> Callable[[Source], Source]:
    """Return what replaces the attention factor of a source."""
    return lambda source: replace(source, file=source.file.model_copy(update={"attention_factor": value}))


def attention_factor_limit(source: Source, engine: str) -> list[Limit]:
    """The limit of engines that compute the attention factor from two lengths, by a formula that is at least 1."""
    value = source.file.attention_factor
    if value >= 1:
        return []
    reason = f"the attention factor is {value:g}, and {engine} cannot express one below 1"
    return [Limit(reason, "an attention factor of 1", with_attention_factor(1.0))]


def check_configuration(source: Source, engine: str) -> None:
    """Check what every engine needs that reads a Hugging Face configuration.

    Raises:
        ExportError: the model is a GGUF file, or its RoPE type cannot be replaced by longrope.
        FactorsError: the factors belong to another rotary geometry.
    """
    if is_gguf(source.model.id):
        raise ExportError(
            f"{engine} loads model folders with a configuration, but the model is a GGUF file: export --format gguf, "
            "or give --model the folder of the same model"
        )
    HuggingFace().check(static(source))


def check_computes(source: Source, engine: str, accepted: Collection[str]) -> None:
    """Check that an engine computes longrope for a type of model.

    Args:
        source: what is exported.
        engine: its name with the version in which this was read.
        accepted: types of models, as in ``model_type`` of their configurations.

    Raises:
        ExportError: it does not, or is not known to.
    """
    kinds = {source.config.model_type, source.geometry.config.model_type}  # of the whole, and of its text part
    if not kinds <= set(accepted):
        raise ExportError(
            f"{engine} is not known to compute with factors for models of type {' with '.join(sorted(kinds))}, only "
            f"for {', '.join(sorted(accepted))}: export another format"
        )


def check_no_image_axes(source: Source, engine: str) -> None:
    """Check that positions have one axis.

    Raises:
        ExportError: positions have axes for the place in an image, which the engine's longrope lacks.
    """
    parameters = source.geometry.config.rope_parameters
    if source.geometry.layer_type is not None:
        parameters = parameters[source.geometry.layer_type]
    if parameters.get("mrope_section"):
        raise ExportError(
            f"{source.geometry.architecture} rotates with positions in images (mrope), which the longrope of {engine} "
            "does not: export --format huggingface"
        )
