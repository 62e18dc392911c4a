"""Makes the ``config.json`` of a model with factors, as transformers and engines with the same format read it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from factor_search.errors import ExportError
from factor_search.factors_file import FactorsFile, Form, check_belongs
from factor_search.model.geometry import TEXT_PARTS, Geometry, longrope_attention_factor
from factor_search.model.yarn import yarn_of_numbers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OF_ROPE_TYPES = frozenset(
    {
        *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "truncate"),  # yarn
        *("low_freq_factor", "high_freq_factor"),  # llama3
        *("short_factor", "long_factor", "short_mscale", "long_mscale"),  # longrope
        "alpha",  # dynamic, in HunYuan
    }
)
"""Keys of RoPE parameters that only say how frequencies are scaled; attention or the geometry may read others."""

THREE_FIELDS = frozenset({"phi3", "phimoe", "phi4_multimodal"})
"""Model types of which transformers 4 accepts exactly three fields in ``rope_scaling``."""


def huggingface_config(
    file: FactorsFile, config: "PretrainedConfig", short: FactorsFile | None = None, *, with_form: bool = False
) -> dict[str, Any]:
    """Return the model's ``config.json`` with the factors.

    It contains both the current ``rope_parameters`` and the older ``rope_scaling`` with ``rope_theta``.

    Args:
        file: the factors.
        config: the configuration of the model.
        short: factors for inputs up to the original length; None uses the same factors for all inputs.
        with_form: write the numbers of the form that the factors have, if they have one, instead of lists. They are
            transformers' numbers: other engines read some of them under other names, or compute others from them.

    Raises:
        ExportError: the factors keep initial tokens, the two sets of factors do not fit together, or the model's RoPE
            cannot be replaced by longrope.
        FactorsError: the factors belong to another rotary geometry.
    """
    from factor_search.model.configuration import head_dim, read_geometry

    geometry = read_geometry(config, file.model.original_length)
    check_pair(file, short, geometry, config)
    if file.initial_tokens:
        raise ExportError(
            f"the factors keep {file.initial_tokens} initial tokens, which a configuration cannot express: search "
            'with "space": {"initial_tokens": [0]}, or export with --drop-initial-tokens and measure what that costs'
        )
    content: dict[str, Any] = config.to_dict()
    _, text = text_part(content, config)
    text["max_position_embeddings"] = max(file.target_length, int(text.get("max_position_embeddings") or 0))
    if geometry.layer_type is None:
        own = text["rope_parameters"]
        text["rope_parameters"] = _parameters(own, file, short, geometry, with_form)
        _add_legacy(text, switching=short is not None)
    else:
        own = text["rope_parameters"]
        text["rope_parameters"] = own | {
            geometry.layer_type: _parameters(own[geometry.layer_type], file, short, geometry, with_form)
        }
    if "original_max_position_embeddings" in text:  # overrides the one in rope_parameters
        text["original_max_position_embeddings"] = file.model.original_length
    if getattr(geometry.config, "head_dim", None) is None:  # older readers do not derive it
        text["head_dim"] = head_dim(geometry.config)
    return content


def check_pair(file: FactorsFile, short: FactorsFile | None, geometry: Geometry, config: "PretrainedConfig") -> None:
    """Check that a configuration of the model can express the factors, apart from initial tokens.

    Raises:
        ExportError: it cannot; the message says why.
        FactorsError: the factors belong to another rotary geometry.
    """
    check_belongs(file, geometry)
    _text_key(config)
    if geometry.no_longer_context is not None:  # the export would promise a length that the model does not see
        raise ExportError(geometry.no_longer_context)
    if geometry.rotated_pairs is not None:
        raise ExportError(
            f"{geometry.architecture} uses proportional RoPE, which a longrope configuration cannot express"
        )
    if short is None:
        return
    check_belongs(short, geometry)
    check_short(file, short, "a configuration")


def check_short(file: FactorsFile, short: FactorsFile, where: str) -> None:
    """Check that factors for short inputs go together with those for long ones.

    Args:
        file: the factors beyond the original length.
        short: the factors up to it.
        where: what holds both, in messages.

    Raises:
        ExportError: they do not.
    """
    original = file.model.original_length
    if short.initial_tokens:
        raise ExportError(f"the short factors keep {short.initial_tokens} initial tokens, which no engine can express")
    if short.model.original_length != original:
        raise ExportError(
            f"the short factors are for an original length of {short.model.original_length}, but the long ones for "
            f"{original}: give factors for the same"
        )
    if short.target_length > original:
        raise ExportError(
            f"the short factors are for {short.target_length} tokens, but {where} switches at the original length of "
            f"{original}: readjust them at that length"
        )
    if short.attention_factor != file.attention_factor:
        raise ExportError(
            f"the attention factor is {file.attention_factor:g} for long inputs and {short.attention_factor:g} for "
            f'short ones, but {where} has one for both: readjust with it as "space": {{"attention_factor": ...}}'
        )


def text_part(content: dict[str, Any], config: "PretrainedConfig") -> tuple[str | None, dict[str, Any]]:
    """Return the part of a ``config.json`` that describes the language model, with its key; None if that is all of it.

    Raises:
        ExportError: it is in none of :data:`~factor_search.model.geometry.TEXT_PARTS`.
    """
    name = _text_key(config)
    return name, content if name is None else content[name]


def _text_key(config: "PretrainedConfig") -> str | None:
    text = config.get_text_config(decoder=True)
    if text is config:
        return None
    for name in TEXT_PARTS:
        if getattr(config, name, None) is text:
            return name
    raise ExportError(
        f"the configuration of model type {config.model_type!r} has its language model in none of "
        f"{', '.join(TEXT_PARTS)}, so an export cannot change it: apply the factors in Python with factor_search.apply"
    )


def language_model_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of an exported configuration that describes the language model, which may be all of it."""
    return next((content[name] for name in TEXT_PARTS if isinstance(content.get(name), dict)), content)


def loaded_by(content: Mapping[str, Any]) -> tuple[str, str | None]:
    """Say which versions of transformers load an exported configuration as it is meant.

    Args:
        content: a configuration, of a language model alone or with its text part in ``text_config``.

    Returns:
        The versions as a requirement (``>=4.57``), and what transformers 4 would do if it is not among them.
    """
    text = language_model_of(content)
    parameters = text["rope_parameters"]
    if "rope_type" not in parameters:
        return ">=5", "transformers 4 has no RoPE parameters by layer type: it would ignore the factors without a word"
    legacy = text["rope_scaling"]  # None for a base alone
    if text.get("model_type") in THREE_FIELDS and legacy is not None and len(legacy) != len(("type", "short", "long")):
        return ">=5", "transformers 4 cannot express this attention factor for the model, and refuses to load it"
    return ">=4.57", None


def _parameters(
    own: Mapping[str, Any], file: FactorsFile, short: FactorsFile | None, geometry: Geometry, with_form: bool
) -> dict[str, Any]:
    """Replace how frequencies are scaled; keep what attention layers, the geometry or unknown code read."""
    kept = {name: value for name, value in own.items() if name not in OF_ROPE_TYPES and value is not None}
    factor: float = file.scale
    original = file.model.original_length
    if kept.get("mscale_all_dim"):  # scales the softmax by (0.1 mscale_all_dim ln factor + 1)^2, but not if "default"
        if own.get("rope_type", "default") == "default":
            del kept["mscale_all_dim"]
        else:
            factor = own["factor"]
    if kept.get("llama_4_scaling_beta") is not None:  # scales queries by 1 + beta ln(1 + floor(position / original))
        own_original = own.get("original_max_position_embeddings", original)
        if short is not None and own_original != original:
            raise ExportError(
                f"{geometry.architecture} scales queries by steps of {own_original} tokens, so its configuration "
                f"cannot switch at {original}: export without short factors"
            )
        original = own_original
    form = form_of(file, geometry) if with_form and short is None else None
    if form is not None and _loads_numbers(form, geometry, kept):
        scaled = {"factor": form.factor, "beta_fast": form.beta_fast, "beta_slow": form.beta_slow}
        scaled |= {"attention_factor": form.attention_factor, "original_max_position_embeddings": original}
        kind = {"yarn": "yarn", "base": "default"}[form.kind]
        return (
            kept
            | {"rope_type": kind, "type": kind, "rope_theta": form.rope_theta}
            | (scaled if form.kind == "yarn" else {})
        )
    return kept | {
        "rope_type": "longrope",
        "type": "longrope",
        "rope_theta": geometry.rope_theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "short_factor": list((short or file).rescale_factors),
        "long_factor": list(file.rescale_factors),
        "attention_factor": file.attention_factor,
        "short_mscale": file.attention_factor,
        "long_mscale": file.attention_factor,
    }


def form_of(file: FactorsFile, geometry: Geometry) -> Form | None:
    """Return the form that the factors have, with which an engine needs no lists.

    Raises:
        ExportError: the form of the file gives other factors for the model.
    """
    form = file.form
    if form is None or file.initial_tokens:
        return None
    numbers = form.model_dump(exclude={"kind"})
    given = yarn_of_numbers(geometry, **numbers)
    pairs = zip(given.rescale_factors, file.rescale_factors, strict=True)
    if given.attention_factor != file.attention_factor or any(abs(one / other - 1) > 1e-9 for one, other in pairs):
        raise ExportError(
            "the form in the factors file is not that of its rescale factors: leave the keys 'form' and 'sha256' out "
            "of the file to export the factors themselves"
        )
    return form


def _loads_numbers(form: Form, geometry: Geometry, kept: Mapping[str, Any]) -> bool:
    """Whether transformers computes a model with these numbers; lists serve where it does not."""
    if kept.get("llama_4_scaling_beta") is not None:  # these models read an original length, which may be another
        return False
    if form.kind == "base":
        return True
    three = getattr(geometry.config, "model_type", None) in THREE_FIELDS  # every scaling of theirs is LongRoPE
    return not three and not geometry.odd  # transformers' ramp is a pair short there


def _add_legacy(text: dict[str, Any], *, switching: bool) -> None:
    """Add the keys that transformers 4 and other engines read instead of ``rope_parameters``."""
    parameters = text["rope_parameters"]
    theta = text["rope_theta"] = parameters["rope_theta"]
    if parameters["rope_type"] == "default":
        text["rope_scaling"] = None
    else:
        text["rope_scaling"] = dict(parameters)
    share = parameters.get("partial_rotary_factor")
    if share is not None:
        text["partial_rotary_factor"] = share
    if text.get("model_type", "").startswith("gpt_neox"):
        text |= {"rotary_emb_base": theta} | ({} if share is None else {"rotary_pct": share})
    if "long_factor" not in parameters:
        return
    original = parameters["original_max_position_embeddings"]
    if switching:  # transformers 4 switches at the one outside, or at the maximum length
        text["original_max_position_embeddings"] = original
    if text.get("model_type") in THREE_FIELDS:
        text["original_max_position_embeddings"] = original
        formula = longrope_attention_factor(text["max_position_embeddings"] / original, original)
        if math.isclose(parameters["attention_factor"], formula, rel_tol=1e-12):
            text["rope_scaling"] = {"type": "longrope"} | {
                name: parameters[name] for name in ("short_factor", "long_factor")
            }
