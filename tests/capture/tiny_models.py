"""Random Mixture-of-Experts models of a few thousand parameters, one for each architecture that is tested."""

import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM

END = 1
_COMMON = {"initializer_range": 0.2, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16}
_COMMON |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_COMMON |= {"pad_token_id": 0, "eos_token_id": END, "bos_token_id": 2, "num_hidden_layers": 3}
_ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
_SHARED = {**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK = _SHARED | _LATENT | {"num_key_value_heads": 4}
_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
_NAMED = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
_ERNIE = {"moe_k": 3, "moe_num_experts": 8, "moe_num_shared_experts": 1, "moe_intermediate_size": 16}
_JAMBA = {"num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 4, "expert_layer_period": 2}
_JAMBA |= {"expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_LINEAR = ["full_attention", "linear_attention", "full_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

ARCHITECTURES = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v2-groups": _DEEPSEEK | _GROUPS,
    "deepseek_v3": _DEEPSEEK | {"n_group": 2, "topk_group": 1},
    "qwen2_moe": {**_NAMED, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_LOCAL, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": _NAMED,
    "mixtral": _LOCAL,
    "granitemoe": _LOCAL,
    "phimoe": _LOCAL,
    "gpt_oss": _LOCAL | {"head_dim": 8, "sliding_window": 4, "layer_types": _SLIDING, "rope_parameters": _ROPE},
    "glm4_moe": {**_SHARED, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "minimax": _LOCAL | {"head_dim": 8, "layer_types": _LINEAR, "block_size": 16},
    "ernie4_5_moe": {**_ERNIE, "moe_layer_start_index": 1, "moe_layer_end_index": 2},
    "dots1": {**_SHARED, "n_group": 1, "topk_group": 1, "layer_types": ["full_attention"] * 3},
    "flex_olmo": _NAMED,
    "jamba": {**_JAMBA, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "minimax_m2": {**_LOCAL, "head_dim": 8, "rotary_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
}


def tiny_model(name, dtype=torch.float32, **changes):
    """The architecture `name` with random weights; its routers have favourites, so no choice hangs on rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name.split("-", maxsplit=1)[0], **(_COMMON | ARCHITECTURES[name] | changes))
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if re.search(r"(gate|router)(\.layer)?\.weight$", parameter_name) and parameter.shape[0] == 8:
                    parameter.normal_(std=1.0)
    return model.to(dtype).eval()
