"""Small GGUF files of random models, written with the ``gguf`` package as llama.cpp's converter would."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from factor_search.files.gguf import ARRAY, STRING, Entry, read_header, write_gguf
from factor_search.testbed.byte_tokenizer import byte_tokenizer

F32, Q4_1, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0


def write_model(
    file: Path,
    model: PreTrainedModel,
    architecture: str = "llama",
    *,
    quantised: GGMLQuantizationType = F32,
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    tokenizer: Any = None,
    context_length: int | None = None,
) -> Path:
    """Write a model with a byte-level vocabulary.

    Args:
        file: where to.
        model: a llama, qwen2 or phi3 of transformers.
        architecture: the name of the architecture in the file.
        quantised: the type of matrices.
        extra: further metadata below the architecture: ``rope.scaling.attn_factor``, ...
        tensors: further tensors, ``rope_freqs.weight`` for example.
        tokenizer: a byte-level tokenizer of the model; None is that of the shipped model.
        context_length: tokens; None is the configuration's.
    """
    config, state = model.config, model.state_dict()
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(context_length or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    for key, value in (extra or {}).items():
        kind = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}[type(value)]
        writer.add_key_value(f"{architecture}.{key}", value, kind)
    _add_vocabulary(writer, tokenizer or byte_tokenizer(config.max_position_embeddings), config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    for name, weight in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            weight = interleaved(weight, heads)
        _add(writer, str(names.get_name(name, (".weight", ".bias"))), weight, quantised)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    header = read_header(file)
    no_merges = Entry(ARRAY, None, struct.pack("<IIQ", ARRAY, STRING, 0))  # which the package cannot write
    write_gguf(replace(header, metadata={**header.metadata, "tokenizer.ggml.merges": no_merges}), file)
    return file


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in the order of llama.cpp's ``llama``: the two of a rotary pair beside each other."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def _add(writer: GGUFWriter, name: str, weight: torch.Tensor, kind: GGMLQuantizationType) -> None:
    values = weight.detach().float().numpy()
    if kind is F32 or values.ndim < 2:
        writer.add_tensor(name, np.ascontiguousarray(values))
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _add_vocabulary(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    backend: Tokenizer = tokenizer.backend_tokenizer
    words = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    words += [f"[PAD{number}]" for number in range(len(words), size)]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words[:size])
    writer.add_token_types([3 if word in special else 1 for word in words[:size]])
    writer.add_token_merges(["a b"])
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
