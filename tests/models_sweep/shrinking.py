"""A small configuration of any architecture: known attributes get small values, by their names."""

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCAB = 61

_SIZES: dict[int, tuple[str, ...]] = {
    VOCAB: (
        "vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "pronunciation_vocab_size",
        "shape_vocab_size", "encoder_hash_byte_group_vocab",
    ),
    64: (
        "max_position_embeddings", "original_max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
        "max_target_positions", "max_source_positions", "context_length",
    ),
    32: (
        "hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "input_embedding_size",
        "output_embedding_size", "lru_width", "backbone_hidden_size",
        "pronunciation_embed_dim", "shape_embed_dim", "word_embed_proj_dim", "dim",
    ),
    48: (
        "intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "dim_ff", "d_inner",
        "intermediate_size_mlp", "ffn_hidden_size", "feed_forward_size", "dense_intermediate_size", "n_inner",
        "shared_intermediate_size", "prompt_mid_dim",
    ),
    24: (
        "moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size",
        "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size",
    ),
    2: (
        "num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers",
        "num_encoder_layers", "num_decoder_layers", "num_key_value_heads", "num_experts_per_tok", "moe_topk",
        "moe_k", "swa_num_key_value_heads", "num_global_key_value_heads", "top_k_experts",
    ),
    4: (
        "num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads",
        "num_heads", "num_encoder_attention_heads", "num_decoder_attention_heads", "attention_heads",
        "swa_num_attention_heads", "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts",
        "linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "qk_rope_head_dim",
        "rotary_dim", "adapter_rank",
    ),
    8: (
        "head_dim", "global_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim", "kv_lora_rank", "dim_head",
        "kv_channels", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim",
        "swa_head_dim", "attention_head_size", "sliding_window", "window_size", "sliding_window_size",
        "local_attention", "attention_window_size", "attention_chunk_size", "chunk_size", "mamba_chunk_size",
        "mamba_d_state", "state_size", "ssm_state_size", "laurel_rank", "hidden_size_per_layer_input",
        "router_hidden_size", "mamba_head_dim", "mamba_d_head", "query_pre_attn_scalar", "block_multiple_of",
        "block_size", "local_attention_window_len", "local_attn_chunk_length", "lsh_attn_chunk_length",
        "index_topk", "o_lora_rank", "hc_lowrank",
    ),
    12: ("q_lora_rank",),
    1: (
        "n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
        "first_k_dense_replace", "num_dense_layers", "mamba_n_groups", "n_groups", "mamba_ngroups",
        "time_step_rank",
    ),
    0: ("num_mtp_layers", "num_nextn_predict_layers"),
    16: ("index_n_heads",),  # of few heads all scores may be zero, and equal scores are chosen by chance
}  # fmt: skip
SMALL = {name: size for size, names in _SIZES.items() for name in names}


def small_configuration(model_type: str, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A small configuration of a model type; the over-rides win over the small values."""
    return CONFIG_MAPPING[model_type](**small_arguments(CONFIG_MAPPING[model_type], overrides))


def small_arguments(kind: type[PreTrainedConfig], overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a configuration class: small values, those of its parts, and the over-rides."""
    names = {field.name: field.default for field in dataclasses.fields(kind)}
    arguments: dict[str, Any] = {}
    for name, default in names.items():
        if name in SMALL and (default is not None or name in ("num_key_value_heads", "num_hidden_layers")):
            arguments[name] = SMALL[name]
        elif name.endswith(("token_id", "token_index")):
            token = _small_token(default)
            if token is not None:
                arguments[name] = token
    for part, part_kind in (kind.sub_configs or {}).items():
        given = overrides.get(part, {})
        if part_kind.__name__ != "AutoConfig" and isinstance(given, dict):
            arguments[part] = small_arguments(part_kind, given)
        elif isinstance(given, dict) and "model_type" in given:
            arguments[part] = small_arguments(CONFIG_MAPPING[given["model_type"]], given)
    return {
        **arguments,
        **{
            name: value
            for name, value in overrides.items()
            if name not in arguments or not isinstance(value, dict) or name not in (kind.sub_configs or {})
        },
    }


def _small_token(default: Any) -> Any:
    """A token id below the vocabulary in place of one above it; None if the default may stay."""
    if isinstance(default, list):
        return [_small_token(token) or token for token in default]
    return default % 5 + VOCAB - 5 if isinstance(default, int) and default >= VOCAB else None
