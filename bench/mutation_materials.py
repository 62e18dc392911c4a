"""What is mutated: small models of several families, a GGUF file and documents."""

import json
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.0, 1.0, 1.2, 1.5, 1.8, 2.0, 2.0]}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4},
    "qwen2": {"rope_parameters": YARN},
    "qwen3": {"head_dim": 16, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, **LLAMA3}},
    "phi3": {
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope"} | LISTS,
    },
    "gpt_neox": {"rotary_pct": 0.5},
    "gemma3_text": {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
    },
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
LLAVA = {
    "model_type": "llava",
    "text_config": SMALL | {"model_type": "llama"},
    "vision_config": VISION,
    "image_token_index": 255,
}


def make_materials(folder: Path) -> None:
    """Write what is mutated: a folder for each family, two shards, a GGUF file, factors and documents."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

    from bench.gguf_writer import write_model
    from factor_search.testbed.byte_tokenizer import byte_tokenizer

    for name, changes in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(SMALL | changes)))
        model.save_pretrained(folder / name)
        byte_tokenizer(64).save_pretrained(folder / name)
        if name == "llama":
            write_model(folder / "model.gguf", model)
            model.save_pretrained(folder / "sharded", max_shard_size="60KB")
            byte_tokenizer(64).save_pretrained(folder / "sharded")
    (folder / "llava").mkdir()
    (folder / "llava" / "config.json").write_text(json.dumps(LLAVA))
    config = AutoConfig.from_pretrained(folder / "llava")
    AutoModelForMultimodalLM.from_config(config).save_pretrained(folder / "llava")
    byte_tokenizer(64).save_pretrained(folder / "llava")
    (folder / "texts").mkdir()
    for number in range(24):
        (folder / "texts" / f"{number:02}.txt").write_text(
            f"Document {number}. " + f"word{number} and more; " * (20 + number)
        )
