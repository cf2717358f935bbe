"""Invariant: the second moments of a layer are those that its optimiser has, wherever its state comes from; what
does not fit the model is refused, and nothing in a file runs.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.model.layers import layer_specs, select_layers, tracked_module
from lorif_core.model.loading import load_skeleton
from lorif_core.model.optimizer_state import PREFIX, live_moments, read_moments
from lorif_core.spec import LayerSpec
from tests.mixtures import MIXTURES
from tests.models import gpt2, llama, llama_lora, scaled

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: scaled(gpt2()), "llama": lambda: scaled(llama()), "olmoe": MIXTURES["olmoe"],
}  # fmt: skip


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    """Steps on random tokens."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        ids = torch.randint(0, 61, (3, 9), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def layers_of(model: Any, rule: str = "all") -> tuple[LayerSpec, ...]:
    return layer_specs(select_layers(model, rule), 1)


def all_parameters(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.9), eps=1e-6)


def named_groups(model: torch.nn.Module) -> torch.optim.Optimizer:
    """In an order of its own."""
    named = list(model.named_parameters())[::-1]
    groups = [{"params": named[::2]}, {"params": named[1::2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


def amsgrad(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)


def saved(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "optimizer.pt")
    return folder / "optimizer.pt"


def keyed_by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As torch.distributed.checkpoint has it, with the name of a wrapper."""
    state = optimizer.state_dict()
    names = [f"module.{name}" for name, _ in model.named_parameters()]
    (group,) = state["param_groups"]
    return {
        "state": {names[key]: entry for key, entry in state["state"].items()},
        "param_groups": [{**group, "params": names}],
    }


def check(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], rule: str = "all") -> None:
    """Whether a file has what the optimiser has now."""
    layers = layers_of(model, rule)
    for layer, found in zip(layers, read_moments(path, model, layers), strict=True):
        live = live_moments(optimizers, tracked_module(model, layer.name).weight)
        assert live is not None and torch.equal(found.values, live.values) and found.values.any()
        assert (found.correction, found.eps) == (live.correction, live.eps)
        torch.testing.assert_close(found.squared(), ((live.values / live.correction).sqrt() + live.eps) ** 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [all_parameters, named_groups, amsgrad])
def test_a_state_dict_has_the_moments_of_its_parameters(
    make: Callable[[torch.nn.Module], torch.optim.Optimizer], family: str, tmp_path: Path
) -> None:
    model = FAMILIES[family]()
    optimizer = make(model)
    steps(model, optimizer)
    check(saved(optimizer.state_dict(), tmp_path), model, [optimizer])


def test_the_bias_of_the_first_steps_is_undone() -> None:
    """At constant gradients g, v / (1 - beta^steps) is g^2 after any number of steps."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.0, eps=1e-3)
    for _ in range(3):
        weight.grad = torch.full((2, 3), 0.5)
        optimizer.step()
    moments = live_moments([torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), optimizer], weight)
    assert moments is not None
    torch.testing.assert_close(moments.squared(), torch.full((2, 3), (0.5 + 1e-3) ** 2))
    assert live_moments([torch.optim.SGD([weight])], weight) is None and live_moments([], weight) is None


def test_a_state_keyed_by_names_needs_no_order(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    optimizer = all_parameters(model)
    steps(model, optimizer)
    check(saved(keyed_by_name(model, optimizer), tmp_path), model, [optimizer])


def test_safetensors_have_moments_by_name(tmp_path: Path) -> None:
    model = FAMILIES["gpt2"]()
    optimizer = all_parameters(model)
    steps(model, optimizer)
    moments = {
        f"{PREFIX}{name}": optimizer.state[weight]["exp_avg_sq"] for name, weight in model.named_parameters()
    }
    save_file({**moments, "step": torch.ones(1)}, tmp_path / "optimizer.safetensors")
    layers = layers_of(model)
    for layer, found in zip(layers, read_moments(tmp_path / "optimizer.safetensors", model, layers), strict=True):
        expected = optimizer.state[tracked_module(model, layer.name).weight]["exp_avg_sq"]
        torch.testing.assert_close(found.squared(), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_trainer_of_transformers_decays_one_group_and_not_the_other(family: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = FAMILIES[family]()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=2, weight_decay=0.1, use_cpu=True,
        logging_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": list(range(1, 9)), "labels": list(range(1, 9))} for _ in range(4)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    skeleton = load_skeleton(ModelConfig(path=str(folder)), StorageConfig()).model
    layers = layers_of(skeleton)
    for layer, found in zip(layers, read_moments(folder / "optimizer.pt", skeleton, layers), strict=True):
        weight = tracked_module(trainer.model, layer.name).weight
        live = live_moments([trainer.optimizer], weight)
        assert live is not None and torch.equal(found.values, live.values) and found.correction == live.correction


def test_the_moments_of_an_adapter_are_those_of_its_own_weights(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    model = llama_lora().train()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    steps(model, optimizer)
    model.save_pretrained(tmp_path / "adapter")
    path = saved(optimizer.state_dict(), tmp_path / "adapter")
    skeleton = load_skeleton(ModelConfig(path=str(tmp_path / "adapter")), StorageConfig()).model
    layers = layers_of(skeleton, "lora_")
    assert len(layers) == 8
    for layer, found in zip(layers, read_moments(path, skeleton, layers), strict=True):
        live = live_moments([optimizer], tracked_module(model.get_base_model(), layer.name).weight)
        assert live is not None and torch.equal(found.values, live.values)
    with pytest.raises(UserError, match=r"no second moments \(exp_avg_sq\) of .*base_layer.weight, which was not"):
        read_moments(path, skeleton, layers_of(skeleton, "base_layer"))


class _Executes:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["object", "plain pickle", "no state", "text", "empty", "list"])
def test_a_file_of_another_kind_is_refused_and_does_not_run(kind: str, ending: str, tmp_path: Path) -> None:
    path, ran = tmp_path / f"optimizer.{ending}", tmp_path / "ran"
    contents = {
        "object": {"state": _Executes(ran), "param_groups": []},
        "no state": {"weights": 1},
        "list": [1, 2],
    }
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_bytes({"plain pickle": pickle.dumps(_Executes(ran)), "text": b"moments", "empty": b""}[kind])
    model = gpt2()
    with pytest.raises(UserError, match=r"optimizer\.\w+ cannot be read as the state of an optimiser; it must be"):
        read_moments(path, model, layers_of(model))
    assert not ran.exists()


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    def refuse(state: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_moments(saved(state, tmp_path), model, layers_of(model))

    model, wider, deeper = gpt2(), gpt2(n_embd=48), gpt2(n_layer=3)
    for other, message in (
        (wider, r"second moments of 61 x 48 numbers for transformer.wte.weight, which has 61 x 24; name the"),
        (deeper, r"by number in groups of 40, but those of the model are in groups of 28; make the optimiser of"),
    ):
        optimizer = all_parameters(other)
        steps(other, optimizer, 1)
        refuse(optimizer.state_dict(), message)
    halves = torch.optim.AdamW(
        [{"params": part} for part in (list(model.parameters())[:5], list(model.parameters())[5:])]
    )
    steps(model, halves, 1)
    refuse(halves.state_dict(), r"in groups of 5 and 23, but those of the model are in groups of 10 and 18")
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, momentum, 1)
    refuse(momentum.state_dict(), r"no second moments \(exp_avg_sq\) of transformer.h.0.attn.c_attn.weight")
    named = torch.optim.AdamW(wider.named_parameters())
    steps(wider, named, 1)
    refuse(named.state_dict(), r"second moments of 48 x 144 numbers for transformer.h.0.attn.c_attn.weight")
