"""Small random mixtures of experts of the families that the documentation names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.models import VOCAB

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _built(kind: Callable[[Any], Any], config: type, own: dict[str, Any], **overrides: Any) -> Any:
    """A model whose biases, routers and norms are random too, so that none is trivially zero."""
    torch.manual_seed(0)
    model = kind(config(**{**_COMMON, **own, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


MIXTURES: dict[str, Callable[..., Any]] = {
    "olmoe": partial(_built, OlmoeForCausalLM, OlmoeConfig, {"intermediate_size": 24, "num_experts": 8}),
    "mixtral": partial(
        _built, MixtralForCausalLM, MixtralConfig, {"intermediate_size": 48, "num_local_experts": 4}
    ),
    "qwen3_moe": partial(
        _built, Qwen3MoeForCausalLM, Qwen3MoeConfig,
        {"moe_intermediate_size": 24, "num_experts": 16, "head_dim": 8, "norm_topk_prob": True},
    ),
    "gpt_oss": partial(
        _built, GptOssForCausalLM, GptOssConfig,
        {"intermediate_size": 24, "num_local_experts": 8, "head_dim": 8, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "deepseek_v3": partial(
        _built, DeepseekV3ForCausalLM, DeepseekV3Config,
        {"intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_group": 2,
         "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 12,
         "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    ),
    "nemotron_h": partial(
        _built, NemotronHForCausalLM, NemotronHConfig,
        {"layers_block_type": ["attention", "moe"], "moe_intermediate_size": 24, "n_routed_experts": 8,
         "moe_shared_expert_intermediate_size": 24, "intermediate_size": 48, "head_dim": 8, "n_group": 1,
         "topk_group": 1},
    ),
}  # fmt: skip
"""Builders by family; they accept overrides of the configuration."""


def routers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that choose experts."""
    return [module for name, module in model.named_modules() if name.endswith((".gate", ".router"))]


def nearly_tied(model: Any, difference: float, seed: int = 0) -> Any:
    """The model with routers whose scores differ by a share `difference` from one expert to the other."""
    generator = torch.Generator().manual_seed(seed)
    for router in routers(model):
        weight = router.weight.data
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(weight[:1] + difference * float(weight.std()) * noise)
        for _, numbers in (*router.named_parameters(recurse=False), *router.named_buffers(recurse=False)):
            if numbers.dim() == 1:
                numbers.data.zero_()
    return model
