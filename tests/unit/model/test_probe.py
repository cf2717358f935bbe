"""Invariant: a model is accepted only if its output at a token depends on nothing behind the token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BloomConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    XLMConfig,
    XLNetConfig,
    xLSTMConfig,
)

from lorif_core.errors import UserError
from lorif_core.model.probe import check_causal, probe_ids
from tests.models import FAMILIES, VOCAB, gpt2, llama, scaled
from tests.unit.model.checkpoints import configure, load, mixtral

ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
_SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "embedding_size": 32, "input_embedding_size": 32,
    "default_language": "en_XX", "pad_token_id": 1, "num_key_value_heads": 2,
}  # fmt: skip


def small(config: type[PreTrainedConfig], **settings: Any) -> torch.nn.Module:
    """An untrained model, whose outputs hardly differ from token to token."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**_SMALL, **settings})).eval().requires_grad_(False)


def xlnet() -> torch.nn.Module:
    config = XLNetConfig(vocab_size=VOCAB, d_model=32, n_layer=2, n_head=4, d_inner=48)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_refused_and_the_same_model_as_decoder_accepted(family: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"looks ahead.*is_decoder=true"):
        check_causal(small(CONFIG_MAPPING[family]).to(dtype), "m", 62)
    check_causal(small(CONFIG_MAPPING[family], is_decoder=True).to(dtype), "m", 62)


def test_other_models_that_look_ahead_are_refused() -> None:
    xlm = {"emb_dim": 32, "n_heads": 4, "n_layers": 2}
    with pytest.raises(UserError, match=r"looks ahead.*causal=true"):
        check_causal(small(XLMConfig, **xlm), "m", 64)
    check_causal(small(XLMConfig, **xlm, causal=True), "m", 64)
    with pytest.raises(UserError, match="looks ahead"):
        check_causal(xlnet(), "m", None)


class Leaky(torch.nn.Module):
    """A causal model with a defect: a multiple of something that a token must not see is added to its logits."""

    def __init__(self, kind: str, gain: float) -> None:
        super().__init__()
        self.inner, self.kind, self.gain = llama().requires_grad_(False), kind, gain
        self.config, self.get_input_embeddings = self.inner.config, self.inner.get_input_embeddings

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        output = self.inner(input_ids=input_ids, use_cache=use_cache)
        ids = input_ids[..., None].float()
        leak = {
            "next token": torch.roll(ids, -1, dims=1),
            "length": torch.full_like(ids, ids.shape[1]),
            "last token": ids[:, -1:].expand_as(ids),
            "batch": ids.mean(dim=0, keepdim=True).expand_as(ids),
            "capacity": (ids.cumsum(0) > 60).float(),  # what earlier texts of a batch leave
        }[self.kind]
        output.logits = output.logits + self.gain * leak * torch.arange(VOCAB)
        return output


@pytest.mark.parametrize("kind", ["next token", "length", "last token", "batch", "capacity"])
def test_a_dependence_that_no_gradient_shows_is_refused(kind: str) -> None:
    check_causal(Leaky(kind, 0.0), "m", 64)
    with pytest.raises(UserError, match="padding" if kind in ("length", "batch", "capacity") else "ahead|padding"):
        check_causal(Leaky(kind, 0.1), "m", 64)


def causal_models() -> Iterator[tuple[str, torch.nn.Module]]:
    for name, make in FAMILIES.items():
        yield name, make().requires_grad_(False)
    yield "mixtral", mixtral().requires_grad_(False)
    moe = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_experts": 16}
    yield "qwen2_moe", small(Qwen2MoeConfig, **moe, num_experts_per_tok=4)
    yield "rwkv", small(RwkvConfig)
    yield "mamba", small(MambaConfig)
    yield "mamba2", small(Mamba2Config, num_heads=8, head_dim=8, n_groups=1, chunk_size=8)
    yield "xlstm", small(xLSTMConfig, chunk_size=8)
    yield "recurrent_gemma", small(RecurrentGemmaConfig, lru_width=32, attention_window_size=8)
    for positions in (2, 3, 5):
        yield f"{positions} positions", gpt2(n_positions=positions).requires_grad_(False)
    for vocabulary in (1, 2, 4):
        yield f"{vocabulary} tokens", gpt2(vocab_size=vocabulary).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_are_accepted(dtype: torch.dtype) -> None:
    for name, model in causal_models():
        if dtype == torch.float32 or name not in ("xlstm", "recurrent_gemma"):
            check_causal(model.to(dtype), name, getattr(model.config, "max_position_embeddings", None))


def test_the_ids_are_ordinary_and_the_same_at_each_call() -> None:
    model = gpt2(bos_token_id=3, eos_token_id=[5, 7])
    ids = probe_ids(model, 50, 50)
    assert not {3, 5, 7} & set(ids.unique().tolist()) and ids.max() < VOCAB
    torch.testing.assert_close(ids, probe_ids(model, 50, 50))


def test_loading_refuses_a_model_that_looks_ahead_or_fails(tmp_path: Path) -> None:
    small(CONFIG_MAPPING["roberta"], is_decoder=True).save_pretrained(tmp_path / "roberta")
    load(tmp_path / "roberta")
    configure(tmp_path / "roberta", is_decoder=False)
    with pytest.raises(UserError, match=f"{tmp_path}/roberta .*looks ahead"):
        load(tmp_path / "roberta")
    xlnet().save_pretrained(tmp_path / "xlnet")
    with pytest.raises(UserError, match=r"xlnet fails on a text .*BFloat16"):
        load(tmp_path / "xlnet", dtype="bfloat16")


def test_a_model_of_float64_may_compute_in_float32_inside() -> None:
    check_causal(scaled(small(BloomConfig), gain=20.0).double(), "m", None)
