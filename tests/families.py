"""Tiny randomly initialised models of many architectures, for tests that must hold on all of them."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = {"head_dim": 16}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": HEAD,
    "mixtral": MIXTURE,
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {},
    "gemma2": HEAD | {"query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    "gemma3_text": HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "gpt_neox": {},
    "stablelm": {},
    "cohere": {"logit_scale": 0.25},
    "glm4": HEAD,
    "olmo2": {},
    "granite": {"logits_scaling": 4.0},
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
    "gpt_oss": HEAD | MIXTURE | {"sliding_window": 8, "num_key_value_heads": 2},
    "llama4_text": HEAD | MIXTURE | {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 96},
    "gemma4_text": HEAD
    | {
        "global_head_dim": 32,
        "sliding_window": 8,
        "num_hidden_layers": 6,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
    },
    "smollm3": {},
    "ernie4_5": {},
    "exaone4": {},
    "phi": {},
    "starcoder2": {},
    "nemotron": {},
    "qwen3_moe": HEAD | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "deepseek_v2": {
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
"""Model type -> what its tiny configuration needs beyond ``SMALL``."""


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
}
LATENT = FAMILIES["deepseek_v3"]
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            *("arcee", "bitnet", "cohere2", "cwm", "diffllama", "doge", "falcon", "falcon_h1", "flex_olmo"),
            *("gemma", "glm", "gpt_neox_japanese", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"),
            *("jais2", "jetmoe", "lfm2", "minimax", "ministral3", "nanochat", "olmo", "persimmon", "seed_oss"),
            "vaultgemma",
        )
    },
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    **dict.fromkeys(("helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), HEAD),
    **dict.fromkeys(("afmoe", "ernie4_5_moe", "exaone_moe", "qwen2_moe"), HEAD | EXPERTS),
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "hy_v4", "minicpm3", "youtu"), LATENT
    ),
    "dots1": HEAD
    | {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "lfm2_moe": EXPERTS | {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1},
    "olmo3": {"num_hidden_layers": 4, "sliding_window": 16},
    "qwen3_5_text": HEAD | LINEAR,
    "qwen3_next": HEAD | EXPERTS | LINEAR,
}
"""Further model types, for what is shown once on as many as possible."""


def tiny_model(model_type: str, **overrides: Any) -> PreTrainedModel:
    """A model in evaluation mode whose weights depend only on its type and the overrides."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SMALL | (FAMILIES | MORE_FAMILIES).get(model_type, {}) | overrides))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some families start with tiny weights, which hide differences
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.float()
