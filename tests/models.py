"""Small random models of three families for the tests, and reference gradients by autograd."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from lorif_core.corpus.batches import Batch, collate
from lorif_core.corpus.tokenise import Example
from lorif_core.model.experts import ExpertMatrix, TrackedModule
from lorif_core.model.layers import layer_specs, select_layers, tracked_module
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.spec import LayerSpec

VOCAB = 61


def gpt2(seed: int = 0, **overrides: object) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    settings = {"n_layer": 2, "n_embd": 24, "n_head": 3, "n_positions": 64, "vocab_size": VOCAB}
    return GPT2LMHeadModel(GPT2Config(**{**settings, **overrides})).eval()


def llama(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """A model with grouped-query attention and a gated MLP, like Qwen."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()


def neox(seed: int = 0) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, vocab_size=VOCAB,
            max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def llama_lora(seed: int = 0) -> torch.nn.Module:
    """A LoRA adapter whose B is not zero, so that A has a gradient."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapted = get_peft_model(
        llama(seed), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    return adapted.eval()


FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "gpt2": gpt2, "llama": llama, "neox": neox, "llama+lora": llama_lora,
}  # fmt: skip


def scaled(model: torch.nn.Module, gain: float = 3.0) -> torch.nn.Module:
    """Enlarge the weights, because with the usual initialisation gradients hardly depend on the input."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wte" not in name and "embed" not in name and "wpe" not in name:
                parameter.mul_(gain)
    return model


def loaded(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return prepare_model(model.to(dtype))


def tracked(model: LoadedModel, factor: int, rule: str = "all") -> tuple[LayerSpec, ...]:
    return layer_specs(select_layers(model.model, rule), factor)


def make_example(ids: list[int], labels: list[int] | None = None, name: str = "x") -> Example:
    return Example(
        example_id=name,
        row=0,
        input_ids=np.asarray(ids, dtype=np.int32),
        labels=np.asarray(ids if labels is None else labels, dtype=np.int32),
        text=None,
        content_hash="0" * 32,
    )


def random_examples(count: int, seed: int = 0, shortest: int = 3, longest: int = 20) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        ids = rng.integers(0, VOCAB, rng.integers(shortest, longest + 1)).tolist()
        labels = [-100 if rng.random() < 0.2 else token for token in ids]
        labels[-1] = ids[-1]
        examples.append(make_example(ids, labels, f"x{number}"))
    return examples


def batch_of(examples: list[Example]) -> Batch:
    return collate(examples, list(range(len(examples))))


def autograd_gradients(
    model: torch.nn.Module, layers: tuple[LayerSpec, ...], example: Example
) -> list[torch.Tensor]:
    """dL/dW of each layer as (I, O), for the token-summed loss of one example, by plain autograd."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules = [tracked_module(model, layer.name) for layer in layers]
    weights = [module.weight for module in modules]
    for weight in weights:
        weight.requires_grad_(True)
    ids = torch.tensor(example.input_ids[None].astype(np.int64))
    labels = torch.tensor(example.labels[None].astype(np.int64))
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
        gradients = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return [in_by_out(module, gradient) for module, gradient in zip(modules, gradients, strict=True)]


def in_by_out(module: TrackedModule, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of a layer's weight as (I, O); the neurons of experts follow one another."""
    if isinstance(module, ExpertMatrix):
        transposed = gradient if module.module.is_transposed else gradient.transpose(1, 2)
        return transposed.flatten(0, 1) if module.is_down else transposed.transpose(0, 1).flatten(1)
    return gradient if isinstance(module, Conv1D) else gradient.T
