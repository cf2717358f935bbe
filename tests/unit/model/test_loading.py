"""Invariant: a checkpoint gives the same layer names with and without weights."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.model.checkpoint import locate
from lorif_core.model.layers import coverage, layer_specs, linear_layers, select_layers
from lorif_core.model.loading import load_model, load_skeleton, tokenizer_fingerprint
from tests.models import FAMILIES, gpt2, llama, tracked
from tests.tiny_tokenizer import byte_tokenizer

STORAGE = StorageConfig()


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    """A folder with a LoRA adapter whose config names the base model in a neighbouring folder."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_skeleton_names_the_layers_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    skeleton, model = load_skeleton(config, STORAGE), load_model(config, STORAGE)
    assert layer_specs(select_layers(skeleton.model), 4) == tracked(model, 4)
    assert skeleton.dtype == str(model.dtype).removeprefix("torch.") == "float32"
    assert skeleton.tokenizer is None and skeleton.max_positions == 64
    names = linear_layers(model.model)
    assert len(names) == {"gpt2": 8, "llama": 14, "neox": 8}[family]
    assert not any("lm_head" in name or "embed_out" in name for name in names)


def test_an_adapter_folder_loads_with_its_base(adapter_folder: Path) -> None:
    config = ModelConfig(path=str(adapter_folder), layers="lora_")
    skeleton, model = load_skeleton(config, STORAGE), load_model(config, STORAGE)
    specs = layer_specs(select_layers(model.model, config.layers), 2)
    assert specs == layer_specs(select_layers(skeleton.model, config.layers), 2)
    assert len(specs) == 2 * 2 * 2 and all(".lora_A." in spec.name or ".lora_B." in spec.name for spec in specs)
    before = locate(config, STORAGE).fingerprint()
    gpt2(seed=3).save_pretrained(adapter_folder.parent / "base")
    assert locate(config, STORAGE).fingerprint() != before, "the fingerprint must change with the base model"


def test_the_fingerprint_follows_the_weights_not_the_folder(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        gpt2(seed=seed).save_pretrained(tmp_path / name)
    a, b, c = (locate(ModelConfig(path=str(tmp_path / name)), STORAGE).fingerprint() for name in "abc")
    assert a == b != c


def test_using_a_tokenizer_does_not_change_its_fingerprint() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a longer text", "b"], truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(byte_tokenizer(bos=True)) != before


def test_pickled_weights_need_allow_pickle(tmp_path: Path) -> None:
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="allow_pickle"):
        load_model(ModelConfig(path=str(tmp_path)), STORAGE)
    loaded = load_model(ModelConfig(path=str(tmp_path), allow_pickle=True), STORAGE)
    torch.testing.assert_close(loaded.model.transformer.wpe.weight, model.transformer.wpe.weight)


def test_a_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no weights"):
        load_model(ModelConfig(path=str(tmp_path)), STORAGE)


def test_coverage_names_the_untracked_groups() -> None:
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=61, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.model.layers[0].mlp.experts.has_post_expert_norm = True  # which cannot be captured
    result = coverage(model, linear_layers(model))
    groups = dict(result.untracked)
    assert result.tracked + sum(groups.values()) == result.total == sum(p.numel() for p in model.parameters())
    assert {"embeddings", "output head", "norms"} <= set(groups)
    assert any(name.startswith("fused experts") for name in groups)
    assert "fused experts" in result.sentence()
    selected = select_layers(model, "q_proj")
    assert dict(coverage(model, selected).untracked)["linear layers left out"] > 0
