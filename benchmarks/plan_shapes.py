"""Configurations of published models, for plans without weights and for models of a few of their blocks."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from lorif_core.model.dry_run import uncapturable_layers
from lorif_core.model.loading import Skeleton


def _llama(blocks: int, width: int, neurons: int, heads: int) -> Callable[..., PreTrainedConfig]:
    def config(**changes: Any) -> PreTrainedConfig:
        sizes = {"num_hidden_layers": blocks, "vocab_size": 128256, "tie_word_embeddings": blocks == 16, **changes}
        return LlamaConfig(
            hidden_size=width, intermediate_size=neurons, num_attention_heads=heads, num_key_value_heads=8, **sizes
        )

    return config


def _olmoe(**changes: Any) -> PreTrainedConfig:
    return OlmoeConfig(
        hidden_size=2048, intermediate_size=1024, num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
        **{"num_hidden_layers": 16, "vocab_size": 50304, **changes},
    )  # fmt: skip


def _qwen3(**changes: Any) -> PreTrainedConfig:
    return Qwen3MoeConfig(
        hidden_size=2048, moe_intermediate_size=768, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, **{"num_hidden_layers": 48, "vocab_size": 151936, **changes},
    )  # fmt: skip


PUBLISHED: dict[str, Callable[..., PreTrainedConfig]] = {
    "Llama 3.2 1B": _llama(16, 2048, 8192, 32),
    "Llama 3.1 8B": _llama(32, 4096, 14336, 32),
    "Llama 3.1 70B": _llama(80, 8192, 28672, 64),
    "OLMoE-1B-7B": _olmoe,
    "Qwen3-30B-A3B": _qwen3,
}
"""Makes the configuration of a model by its name, with changes of some keys."""


def skeleton(config: PreTrainedConfig, dtype: str) -> Skeleton:
    """The model of a configuration without weights."""
    config.dtype = getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    return Skeleton(model, None, dtype, None, uncapturable_layers(model))
