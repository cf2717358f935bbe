"""Models of real layer shapes with random weights, for benchmarks of speed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.workload import make_model


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, and the rows and tokens of a batch."""

    description: str
    make: Callable[[], PreTrainedModel]
    rows: int
    tokens: int


def _gpt2_small(blocks: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=blocks, vocab_size=16384, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )


def _llama(blocks: int, width: int, hidden: int, heads: int, key_heads: int, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, intermediate_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads,
            num_key_value_heads=key_heads, vocab_size=vocabulary, tie_word_embeddings=True,
        )
    )  # fmt: skip


SHAPES: dict[str, Shape] = {
    "4x256": Shape("GPT-2, 4 blocks, width 256, vocabulary 4,096", lambda: make_model(4, 256, 128), 16, 128),
    "gpt2-small": Shape("2 of GPT-2 small's 12 blocks, vocabulary 16,384", lambda: _gpt2_small(2), 4, 256),
    "smollm2-135m": Shape(
        "SmolLM2-135M, all 30 blocks", lambda: _llama(30, 576, 1536, 9, 3, 49152), 4, 256
    ),
    "llama-1b": Shape(
        "2 of Llama 3.2 1B's 16 blocks, vocabulary 16,384", lambda: _llama(2, 2048, 8192, 32, 8, 16384), 2, 256
    ),
}  # fmt: skip
