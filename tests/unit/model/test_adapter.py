"""Invariant: an adapter on its base model computes what peft's own merged model computes, or it is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.model.loading import load_skeleton
from tests.models import gpt2, llama
from tests.unit.model.checkpoints import Tensors, load, mixtral

IDS = torch.arange(1, 10)[None]
WEIGHTS = "adapter_model.safetensors"


def lora(**settings: Any) -> LoraConfig:
    chosen = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **settings}
    return LoraConfig(task_type="CAUSAL_LM", **chosen)


def save_adapter(folder: Path, config: PeftConfig, base: Any = None) -> Path:
    """A folder with an adapter of random weights; the base is beside it."""
    base = base or llama()
    base.save_pretrained(folder / "base")
    adapted = get_peft_model(base, copy.deepcopy(config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


CONFIGS: dict[str, PeftConfig] = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True, lora_alpha=3),
    "ranks": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 9}),
    "whole modules": lora(modules_to_save=["lm_head", "norm"]),
    "whole embedding": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "embedding": lora(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "tokens": lora(trainable_token_indices=[1, 2, 3]),
    "pissa": lora(init_lora_weights="pissa"),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False),
}
BASES: dict[str, tuple[Callable[[], Any], PeftConfig]] = {
    **{name: (llama, config) for name, config in CONFIGS.items()},
    "biases": (gpt2, lora(target_modules=["c_attn"], bias="all", use_dora=True)),
    "experts": (mixtral, lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])),
}


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_computes_what_peft_computes(kind: str, tmp_path: Path) -> None:
    make, config = BASES[kind]
    folder = save_adapter(tmp_path, config, make())
    loaded = load(folder).model
    merged = PeftModel.from_pretrained(make(), folder).merge_and_unload()
    with torch.no_grad():
        logits = loaded(input_ids=IDS).logits
        torch.testing.assert_close(logits, merged(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
        assert (logits - make()(input_ids=IDS).logits).abs().max() > 1e-4
    skeleton = load_skeleton(ModelConfig(path=str(folder)), StorageConfig()).model
    shapes = {name: parameter.shape for name, parameter in loaded.named_parameters()}
    assert {name: parameter.shape for name, parameter in skeleton.named_parameters()} == shapes


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def test_names_of_wrappers_are_removed(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, CONFIGS["whole modules"])
    before = load(folder).model(input_ids=IDS).logits
    prefix = "base_model.model."
    change_tensors(
        folder, lambda tensors: {k.replace(prefix, f"{prefix}_orig_mod."): t for k, t in tensors.items()}
    )
    torch.testing.assert_close(load(folder).model(input_ids=IDS).logits, before)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lora", lambda t: {k.replace("layers", "blocks"): v for k, v in t.items()}, "no place for .*blocks.0"),
        ("lora", lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k}, "lacks .*layers.1.mlp"),
        ("dora", lambda t: {k: v for k, v in t.items() if "magnitude" not in k}, "lacks .*lora_magnitude_vector"),
        ("whole modules", lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, "lacks lm_head.weight"),
        ("lora", lambda t: {**t, "base_model.model.extra.weight": torch.ones(2)}, "no place for extra.weight"),
        ("lora", lambda t: {k: v[:2].clone() if "lora_A" in k else v for k, v in t.items()}, "shape"),
        (
            "lora",
            lambda t: {k: v * float("nan") if "0.mlp" in k else v for k, v in t.items()},
            "not finite.*0.mlp",
        ),
        ("lora", lambda t: {}, "lacks"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    kind: str, change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path, CONFIGS[kind])
    change_tensors(folder, change)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, CONFIGS["lora"])
    gpt2().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="not found in the base model"):
        load(folder)
    wide = llama()
    wide.resize_token_embeddings(70)
    wide.save_pretrained(tmp_path / "base")
    load(folder)
    save_adapter(tmp_path, CONFIGS["whole embedding"], wide)
    llama().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"size mismatch for .*embed_tokens"):
        load(folder)


@pytest.mark.parametrize(
    "config",
    [
        lora(alora_invocation_tokens=[3]),
        lora(init_lora_weights="pissa_niter_4"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_what_the_layers_alone_do_not_compute_is_refused(config: PeftConfig, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, config)
    for attempt in (load, lambda folder: load_skeleton(ModelConfig(path=str(folder)), StorageConfig())):
        with pytest.raises(UserError, match=str(folder)):
            attempt(folder)


def test_pickled_and_stacked_adapters_are_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, CONFIGS["lora"])
    (folder / "other.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="allow_pickle"):
        load(folder)
    load(folder, allow_pickle=True)
    second = save_adapter(tmp_path / "second", CONFIGS["lora"])
    file = second / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(folder)}))
    with pytest.raises(UserError, match="is an adapter too"):
        load(second)
