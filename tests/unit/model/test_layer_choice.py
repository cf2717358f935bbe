"""Invariants: MLPs are found by name in every architecture; `auto` takes few late ones of deep models."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from lorif_core.errors import UserError
from lorif_core.model.layer_choice import block_of, is_mlp
from lorif_core.model.layers import choose_layers, linear_layers, select_layers

MLP = [
    "transformer.h.3.mlp.c_fc",
    "model.layers.0.mlp.gate_proj",
    "model.layers.11.mlp.down_proj",
    "h.0.mlp.dense_4h_to_h",
    "gpt_neox.layers.0.mlp.dense_h_to_4h",
    "model.decoder.layers.0.fc1",
    "bert.encoder.layer.0.intermediate.dense",
    "bert.encoder.layer.1.output.dense",
    "model.layers.0.mlp.shared_expert.up_proj",
    "model.layers.2.feed_forward.w2",
    "model.layers.1.mlp.experts.5.down_proj",
    "backbone.layers.0.mixer.up_proj",
    "model.layers.0.mlp_block.gate_proj",
    "blocks.0.ffn.proj_up_gate",
    "transformer.blocks.0.ffn.up_proj",
    "model.layers.0.shared_mlp.input_linear",
    "roberta_prelayernorm.encoder.layer.0.intermediate.dense",
]
NOT_MLP = [
    "model.layers.0.self_attn.q_proj",
    "transformer.h.0.attn.c_proj",
    "bert.encoder.layer.0.attention.output.dense",
    "model.layers.0.mlp.gate",
    "model.layers.0.mlp.router",
    "model.layers.0.mlp.shared_expert_gate",
    "model.layers.0.mlp.gate.wg",
    "backbone.layers.0.mixer.in_proj",
    "model.layers.0.mamba.out_proj",
    "lm_head.dense",
    "cls.predictions.dense",
    "model.layers.0.linear_attn.in_proj_qkv",
    "model.vision_tower.encoder.layers.0.mlp.fc1",
]


@pytest.mark.parametrize("name", MLP)
def test_an_mlp_is_known_by_its_name(name: str) -> None:
    assert is_mlp(name)


@pytest.mark.parametrize("name", NOT_MLP)
def test_attention_routers_and_heads_are_no_mlp(name: str) -> None:
    assert not is_mlp(name)


def llama(blocks: int) -> torch.nn.Module:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=40, num_hidden_layers=blocks, num_attention_heads=2, vocab_size=61
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def gpt2(blocks: int) -> torch.nn.Module:
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_layer=blocks, n_embd=16, n_head=2, n_positions=8, vocab_size=61))


@pytest.mark.parametrize("model", [llama(3), gpt2(3)], ids=["llama", "gpt2"])
def test_in_a_model_of_few_blocks_every_mlp_counts(model: torch.nn.Module) -> None:
    choice = choose_layers(model, "auto")
    assert choice.layers.keys() == select_layers(model, "mlp").keys()
    assert len(choice.layers) in (9, 6) and "because there are few" in choice.reason


@pytest.mark.parametrize("blocks", [9, 12, 30, 80])
@pytest.mark.parametrize(("make", "name"), [(llama, "down_proj"), (gpt2, "mlp.c_proj")])
def test_in_a_deep_model_few_late_down_projections_do(make, blocks: int, name: str) -> None:  # type: ignore[no-untyped-def]
    choice = choose_layers(make(blocks), "auto")
    assert len(choice.layers) == min(15, blocks - blocks // 2) and all(
        layer.endswith(name) for layer in choice.layers
    )
    chosen = [block_of(layer) for layer in choice.layers]
    assert all(block is not None and blocks // 2 <= block < blocks for block in chosen)
    assert f"of {blocks}" in choice.reason and next(iter(choice.layers)) in choice.reason


def test_a_model_without_mlps_tracks_all_its_layers() -> None:
    mamba = MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=61))
    choice = choose_layers(mamba, "auto")
    assert choice.layers.keys() == linear_layers(mamba).keys() and "no name shows an MLP" in choice.reason
    with pytest.raises(UserError, match=r"no MLP that its names show.*mixer"):
        choose_layers(mamba, "mlp")


def test_the_rule_chooses_among_the_layers_that_are_left() -> None:
    model = llama(30)
    excluded = choose_layers(model, "auto", exclude=r"layers\.(17|22)\.")
    assert not {block_of(name) for name in excluded.layers} & {17, 22}
    lost = dict.fromkeys((name for name in linear_layers(model) if ".27." in name), "is never called")
    assert 27 not in {block_of(name) for name in choose_layers(model, "auto", uncapturable=lost).layers}


def test_a_regex_that_matches_nothing_lists_the_layers() -> None:
    with pytest.raises(UserError, match=r"'q_projj' matches none.*q_proj"):
        select_layers(llama(1), "q_projj")


def test_more_blocks_are_spread_over_the_last_half() -> None:
    chosen = {
        count: [block_of(name) for name in choose_layers(llama(30), "auto", late_blocks=count).layers]
        for count in (1, 3, 7, 15)
    }
    assert chosen == {
        1: [22], 3: [17, 22, 27], 7: [16, 18, 20, 22, 24, 26, 28], 15: list(range(15, 30))
    }  # fmt: skip
