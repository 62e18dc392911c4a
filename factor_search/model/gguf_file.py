"""Loads a GGUF file as a plain transformers model: configuration and dequantised weights.

transformers reads such files itself, but drops their RoPE scaling, several sizes and unexpected biases without a word.
What it drops is taken from the file here, and the live frequencies are compared with the file's.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from factor_search.errors import ModelLoadError, UnsupportedModelError
from factor_search.files.gguf import F32, UINT32, Entry, Header, Tensor, number_entry, read_header, write_gguf
from factor_search.model.gguf_rope import OWN_FREQS, FileRope, check_numbers, read_rope
from factor_search.spec import ModelSpec

SAME_ARCHITECTURE = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "t5encoder": "t5",
}
"""Names in files -> names in the tables of transformers."""


def gguf_config(file: Path) -> PretrainedConfig:
    """The configuration that a GGUF file describes.

    Raises:
        ModelLoadError: the file is broken.
        UnsupportedModelError: transformers does not read its architecture from GGUF files.
    """
    header = read_header(file)
    check_numbers(header)
    _check_supported(header)
    rope = _rope_to_set(header)
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        write_gguf(_described(header), Path(folder, "header.gguf"))
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, gguf_file="header.gguf")
    config.__dict__.pop("_model_name_or_path", None)  # the title in the file's metadata
    config.name_or_path = str(file)
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if isinstance(class_name, str):
        config.architectures = [class_name]
    _set_biases(config, header)
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:  # a default that the file does not state
        config.pad_token_id = None
    if rope is not None and getattr(config, "rope_parameters", None):
        _set_rope(config, rope)
    return config


def gguf_model(spec: ModelSpec, config: PretrainedConfig, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the weights of a GGUF file into a plain model, which can be trained and saved.

    With the dtype ``auto``, F32, F16 and BF16 files keep their precision, and quantised ones become bfloat16, whose
    error is far below that of the quantisation.

    Args:
        spec: the model.
        config: from :func:`gguf_config`.
        options: further options of ``from_pretrained``.

    Returns:
        The model, and what transformers says about missing weights.

    Raises:
        UnsupportedModelError: the model computes with other frequencies than the file describes.
    """
    file = Path(spec.id)
    header = read_header(file)
    dtype = own_dtype(header) if spec.dtype == "auto" else getattr(torch, spec.dtype)
    with _no_progress_bar():
        model, information = AutoModelForCausalLM.from_pretrained(
            str(file.absolute().parent),
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),  # plain weights, which can be trained and saved
            output_loading_info=True,
            **options,
        )
    model.config.name_or_path = model.name_or_path = spec.id
    _without_output_bias(model, information)
    _check_all_used(model, header)
    rope = _rope_to_set(header)
    if rope is not None and getattr(config, "rope_parameters", None):
        _check_live(model, config, rope)
    return model, information


def _check_supported(header: Header) -> None:
    from transformers.integrations import GGUF_CONFIG_MAPPING

    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        raise ModelLoadError("GGUF files need transformers 5.23 or later: upgrade it") from None
    tables = GGUF_CONFIG_MAPPING.keys() | GGUF_CONFIG_ARCHS.keys()
    tables = {table for table in tables if table in CONFIG_MAPPING_NAMES or table in GGUF_CONFIG_ARCHS}
    names = {name: of for of, name in SAME_ARCHITECTURE.items()}
    if SAME_ARCHITECTURE.get(header.architecture, header.architecture) not in tables:
        raise UnsupportedModelError(
            f"{header.file} has architecture {header.architecture}, which transformers does not read from GGUF files: "
            f"it reads {', '.join(sorted(names.get(table, table) for table in tables))}"
        )


def _described(header: Header) -> Header:
    """A file without data, vocabulary and RoPE scaling, which transformers reads fast and without surprises."""
    architecture = header.architecture
    left_out = (
        "tokenizer.ggml.merges",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "tokenizer.chat_template",
    )
    metadata: dict[str, Entry] = {
        key: entry
        for key, entry in header.metadata.items()
        if key not in left_out and not key.startswith((f"{architecture}.rope.scaling.", "general.alignment"))
    }
    embedding = header.tensor("token_embd.weight")
    if embedding is not None:  # may have more rows than the vocabulary has words
        metadata[f"{architecture}.vocab_size"] = number_entry(embedding.shape[-1], UINT32)
        words = metadata.get("tokenizer.ggml.tokens")
        if words is not None and not _counts_words(architecture):
            del metadata["tokenizer.ggml.tokens"]
    names = [tensor.name for tensor in header.tensors]
    return replace(header, metadata=metadata, tensors=tuple(Tensor(name, (0,), F32, 0, b"") for name in names))


def _counts_words(architecture: str) -> bool:
    """Whether transformers takes the size of the vocabulary from its words."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return architecture in GGUF_CONFIG_ARCHS


def _rope_to_set(header: Header) -> FileRope | None:
    """The RoPE of the file; None for models with several geometries, which transformers knows by architecture."""
    return None if header.architecture in OWN_FREQS else read_rope(header)


def _set_biases(config: PretrainedConfig, header: Header) -> None:
    """Let a configuration say which biases the file has; transformers leaves out those that it does not expect."""
    for option, part in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
        if hasattr(config, option):
            setattr(config, option, any(tensor.name.endswith(f".{part}.bias") for tensor in header.tensors))


def _set_rope(config: PretrainedConfig, rope: FileRope) -> None:
    """Let a configuration say what the file says about RoPE, for the layers that see the whole context."""
    if getattr(config, "head_dim", rope.head_dim) != rope.head_dim:
        config.head_dim = rope.head_dim
    config.max_position_embeddings = rope.context_length
    own = config.rope_parameters
    nested = {name: value for name, value in own.items() if isinstance(value, dict)}
    if not nested:
        own = config.rope_parameters = _merged(own, rope)
    elif "full_attention" in nested and nested["full_attention"].get("rope_type") != "proportional":
        config.rope_parameters = own | {"full_attention": _merged(nested["full_attention"], rope)}
    stated = rope.stated_length is not None and rope.as_transformers()["rope_type"] == "linear"  # has no key for it
    if stated or hasattr(config, "original_max_position_embeddings"):  # overrides the one in rope_parameters
        config.original_max_position_embeddings = rope.original_length
    if getattr(config, "partial_rotary_factor", None) is not None:
        config.partial_rotary_factor = rope.rotary_dim / rope.head_dim


def _merged(own: dict[str, Any], rope: FileRope) -> dict[str, Any]:
    kept = {key: value for key, value in own.items() if key.startswith("mrope")}
    return kept | rope.as_transformers()


def own_dtype(header: Header) -> torch.dtype:
    """Return the precision that the weights of a file are loaded in, unless another is asked for."""
    kinds = {tensor.kind for tensor in header.tensors if len(tensor.shape) > 1}
    return {frozenset({0}): torch.float32, frozenset({1}): torch.float16}.get(frozenset(kinds), torch.bfloat16)


def _without_output_bias(model: PreTrainedModel, information: dict[str, Any]) -> None:
    """Set the biases of attention's output to 0 in files that have biases of q, k and v only, as llama.cpp does."""
    for name in [name for name in information["missing_keys"] if name.endswith(".o_proj.bias")]:
        torch.nn.init.zeros_(model.get_parameter(name))
        information["missing_keys"].remove(name)


def _check_all_used(model: PreTrainedModel, header: Header) -> None:
    """Refuse a file of which transformers uses a part only; its reader leaves out what it cannot place."""
    if _counts_words(header.architecture) or header.architecture in ("falcon", "bloom"):  # leave out a copy on purpose
        return
    tensors = [tensor for tensor in header.tensors if not tensor.name.startswith("rope_")]
    held = sum(math.prod(tensor.shape) for tensor in tensors)
    used = sum(
        weight.numel()
        for weight in {id(weight): weight for weight in model.state_dict(keep_vars=True).values()}.values()
    )
    if held > used:
        raise UnsupportedModelError(
            f"{header.file} holds {held} weights, but {type(model).__name__} of transformers uses {used} of them, so "
            "its losses would not be those of llama.cpp"
        )


def _check_live(model: PreTrainedModel, config: PretrainedConfig, rope: FileRope) -> None:
    """Compare the frequencies that the model computes with to those that llama.cpp would compute with."""
    layer_type = "full_attention_" if "full_attention" in config.rope_parameters else ""
    d = rope.rotary_dim
    theta = rope.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    expected = theta / torch.tensor(rope.rescale_factors(short=True), dtype=torch.float64)
    for module in model.modules():
        live = module._buffers.get(f"{layer_type}inv_freq")
        if live is None:
            continue
        scaling = getattr(module, f"{layer_type}attention_scaling", 1.0)
        same = live.shape == expected.shape and torch.allclose(live.double().cpu(), expected, rtol=1e-5, atol=0)
        if not same or abs(scaling / rope.attention_factor - 1) > 1e-5:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not compute with the frequencies of {model.name_or_path}, so its losses "
                "would not be those of llama.cpp"
            )


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Replace the bar of transformers' reader of GGUF files, which its own switch does not turn off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar
