"""Models with the shapes of published ones, on the meta device, without weights."""

from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorif_core.model.loading import Skeleton

_LLAMA: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


@cache
def llama_skeleton(name: str) -> Skeleton:
    """A Llama 3 of 1, 8 or 70 billion parameters in bfloat16."""
    config = LlamaConfig(**_LLAMA[name], num_key_value_heads=8, vocab_size=128256, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Skeleton(model.eval(), None, "bfloat16", None, {})
