"""Small checkpoints on disk for the tests of loading, and changes to their tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.model.loading import LoadedModel, load_model
from tests.models import VOCAB

Tensors = dict[str, torch.Tensor]


def mixtral(seed: int = 0) -> MixtralForCausalLM:
    """A model whose checkpoint has a tensor for each expert, and whose modules have fused ones."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCAB, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Apply a change to the tensors of each file of a checkpoint, and to its index."""
    names: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        tensors = change(load_file(file))
        save_file(tensors, file, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, file.name)
    for index in folder.glob("*.index.json"):
        index.write_text(json.dumps({**json.loads(index.read_text()), "weight_map": names}))


def configure(folder: Path, **settings: Any) -> None:
    """Change settings of a checkpoint's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def load(folder: Path, **settings: Any) -> LoadedModel:
    return load_model(ModelConfig(path=str(folder), **settings), StorageConfig(), "cpu")
