"""Layers are selected by two regexes; the output head, adapters in it and weights it shares are never tracked."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

from lorif_core.errors import UserError
from lorif_core.model.layers import coverage, layer_specs, select_layers
from lorif_core.spec import exclusion
from tests.models import gpt2, llama


def lora(targets: list[str], saved: list[str] | None = None) -> torch.nn.Module:
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=saved, init_lora_weights=False)
    return get_peft_model(llama(), config).get_base_model()


@pytest.mark.parametrize(
    "model",
    [
        llama(),
        gpt2(),
        lora(["q_proj", "lm_head"]),
        lora(["q_proj"], ["lm_head"]),
        lora(["q_proj", "embed_tokens"]),
    ],
    ids=["plain", "tied", "adapter in the head", "head trained and saved", "adapter in the embedding"],
)
def test_the_head_is_never_tracked(model: torch.nn.Module) -> None:
    head = model.get_output_embeddings()
    heads = {id(parameter) for parameter in head.parameters()}
    selected = select_layers(model)
    assert selected and not any(id(module.weight) in heads for module in selected.values())
    assert not any("lm_head" in name for name in selected)
    with pytest.raises(UserError, match="matches none of the linear layers"):
        select_layers(model, "lm_head")


def test_a_head_that_the_model_does_not_declare_is_known_by_its_size() -> None:
    class Undeclared(type(llama())):  # type: ignore[misc]
        def get_output_embeddings(self) -> None:
            return None

    model = llama()
    model.__class__ = Undeclared
    assert "lm_head" not in select_layers(model)


def test_a_linear_layer_with_the_weight_of_the_embedding_is_not_tracked() -> None:
    model = llama()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = model.model.embed_tokens.weight
    assert "model.layers.0.mlp.up_proj" not in select_layers(model)


def test_exclude_leaves_out_what_it_matches() -> None:
    model = llama()
    assert select_layers(model, exclude=r"mlp").keys() == select_layers(model, "self_attn").keys()
    assert select_layers(model, "proj", "mlp|[qk]_proj").keys() == select_layers(model, "[vo]_proj").keys()
    with pytest.raises(UserError, match=r"model\.exclude = '\('.*not a regular expression"):
        select_layers(model, exclude="(")
    with pytest.raises(UserError, match=r"model\.exclude = 'proj' leaves out all"):
        select_layers(model, "q_proj", "proj")


def test_the_advice_of_a_refusal_leaves_out_the_named_layers_and_their_namesakes() -> None:
    model = llama()
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    kept = select_layers(model, exclude=exclusion(names))
    assert len(kept) == len(select_layers(model)) - 4
    assert not any(re.search(r"up_proj|q_proj", name) for name in kept)


def test_modules_that_share_a_weight_are_one_layer() -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    names = [layer.name for layer in layer_specs(select_layers(model, "up_proj"), 2)]
    assert names == ["model.layers.0.mlp.up_proj"]


def test_weights_of_three_dimensions_are_not_all_experts() -> None:
    mamba = MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=61))
    groups = dict(coverage(mamba, select_layers(mamba)).untracked)
    assert "convolutions" in groups and not any("experts" in name for name in groups)
