"""Invariant: the loss without autograd is used only for a model whose logits are a plain linear head."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    Llama4TextConfig,
    MiniCPM3Config,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from lorif_core.gradients.extract import Extractor
from lorif_core.model import loss
from lorif_core.model.head import inspect_head
from lorif_core.model.loading import prepare_model
from lorif_core.model.probe import probe_ids
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import FAMILIES, VOCAB, autograd_gradients, batch_of, gpt2, llama, random_examples, tracked

_SMALL = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def small(config: type[PreTrainedConfig], **settings: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**_SMALL, **settings})).eval()


OTHER_HEADS: dict[str, Callable[[], Any]] = {
    "cap": lambda: small(Gemma2Config, final_logit_softcapping=30.0),
    "high cap": lambda: small(Gemma2Config, final_logit_softcapping=3e3),
    "cap of another name": lambda: small(RecurrentGemmaConfig, lru_width=24, logits_soft_cap=30.0),
    "scale": lambda: small(CohereConfig, logit_scale=0.0625),
    "divisor": lambda: small(GraniteConfig, logits_scaling=8.0),
    "multiplier": lambda: small(FalconH1Config, lm_head_multiplier=0.02, mamba_d_ssm=24, mamba_n_heads=6),
    "scaled input": lambda: small(
        MiniCPM3Config, dim_model_base=8, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4,
        v_head_dim=8,
    ),
}  # fmt: skip
LINEAR_HEADS: dict[str, Callable[[], Any]] = {
    **FAMILIES,
    "no cap": lambda: small(Gemma2Config, final_logit_softcapping=None),
    "bias": lambda: small(PhiConfig),
    "another bias": lambda: small(GPTJConfig, n_embd=24, n_layer=2, n_head=2, rotary_dim=4),
    "projection before": lambda: small(OPTConfig, ffn_dim=40, word_embed_proj_dim=16),
    "4 tokens": lambda: gpt2(vocab_size=4),
    "1 token": lambda: gpt2(vocab_size=1),
}


BEHIND_LAYERS: dict[str, Callable[[], Any]] = {
    "transform": lambda: small(BertConfig, is_decoder=True),
}
"""Heads with linear layers before the output layer, which are tracked too."""


@pytest.mark.parametrize("kind", BEHIND_LAYERS)
def test_a_head_may_have_layers_of_its_own(kind: str) -> None:
    model = BEHIND_LAYERS[kind]()
    reference = copy.deepcopy(model).double()
    subject = prepare_model(model)
    assert subject.head.ends_linear and not subject.head.is_linear
    layers = tracked(subject, 1)
    assert any("transform" in layer.name for layer in layers)
    examples = random_examples(2, seed=8)
    extractor = Extractor(subject, layers, ProjectionSpec(factor=1), CodeSpec("dense", 1, "float32"))
    extractor.check()
    _, gradients = extractor.gradients(batch_of(examples))
    for b, example in enumerate(examples):
        for gradient, expected in zip(gradients, autograd_gradients(reference, layers, example), strict=True):
            error = np.linalg.norm(gradient[b].numpy() - expected.numpy().ravel())
            assert error <= 2e-5 * np.linalg.norm(expected.numpy())


class LargestLogits(TorchDispatchMode):
    """Records the largest number of logits that an operation returns, for a vocabulary of 8192."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (8192,):
                self.numbers = max(self.numbers, result.numel())
        return results


@pytest.mark.parametrize("kind", [*OTHER_HEADS, *BEHIND_LAYERS, "llama", "bias", "text model of a larger one"])
def test_no_head_has_all_logits_in_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation returns the logits of more tokens than a chunk has."""
    with monkeypatch.context() as patch:
        patch.setitem(_SMALL, "vocab_size", 8192)
        if kind == "llama":
            model: Any = llama(vocab_size=8192)
        elif kind == "text model of a larger one":
            model = small(Llama4TextConfig, num_local_experts=2, intermediate_size_mlp=40)
        else:
            model = {**OTHER_HEADS, **BEHIND_LAYERS, **LINEAR_HEADS}[kind]()
    subject = prepare_model(model)
    ids = torch.randint(0, 60, (8, 64))
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 4 * 32 * 8192)
    with LargestLogits() as largest:
        subject.backward(ids, ids)
    assert 0 < largest.numbers <= 32 * 8192


@pytest.mark.parametrize("kind", OTHER_HEADS)
def test_other_heads_are_not_linear_and_their_gradients_are_right(kind: str) -> None:
    model = OTHER_HEADS[kind]()
    reference = copy.deepcopy(model).double()
    subject = prepare_model(model)
    assert not subject.head.is_linear
    layers = tracked(subject, 1, "mlp|feed_forward")
    examples = random_examples(2, seed=8)
    _, gradients = Extractor(subject, layers, ProjectionSpec(factor=1), CodeSpec("dense", 1, "float32")).gradients(
        batch_of(examples)
    )
    for b, example in enumerate(examples):
        for gradient, expected in zip(gradients, autograd_gradients(reference, layers, example), strict=True):
            error = np.linalg.norm(gradient[b].numpy() - expected.numpy().ravel())
            assert error <= 2e-5 * np.linalg.norm(expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_head_is_recognised_in_every_dtype(dtype: torch.dtype) -> None:
    for kind, make in LINEAR_HEADS.items():
        assert prepare_model(make().to(dtype)).head.is_linear, kind
    for kind in ("high cap", "divisor", "scaled input"):
        assert not prepare_model(OTHER_HEADS[kind]().to(dtype)).head.is_linear, kind


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits * 1.01,
        lambda logits: logits + 1e-3,
        lambda logits: logits.clamp(max=1e4),
        lambda logits: logits.roll(1, dims=-1),
        lambda logits: logits.roll(1, dims=1),
        lambda logits: logits[..., :-1],
        lambda logits: logits.mul_(0.5),
        lambda logits: torch.where(torch.arange(VOCAB) == 7, -torch.inf, logits),
        torch.log_softmax,
    ],
)
def test_any_change_of_the_logits_is_seen(
    change: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits, -1) if change is torch.log_softmax else change(output.logits)
        return output

    assert inspect_head(model, probe_ids(model, 1, 4)).is_linear
    monkeypatch.setattr(model, "forward", changed)
    head = inspect_head(model, probe_ids(model, 1, 4))
    assert not head.is_linear and head.width in (VOCAB, VOCAB - 1)


def test_a_head_with_a_hidden_state_of_its_own_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: head(hidden.tanh()))
    assert not inspect_head(model, probe_ids(model, 1, 4)).is_linear
    monkeypatch.undo()
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    assert not inspect_head(model, probe_ids(model, 1, 4)).is_linear
