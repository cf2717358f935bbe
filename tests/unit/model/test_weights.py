"""Invariant: a loaded model has exactly the numbers of its checkpoint, or its weights are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorif_core.errors import UserError
from tests.models import FAMILIES, gpt2, llama
from tests.unit.model.checkpoints import Tensors, configure, load, mixtral, rewrite

MAKERS = {**{name: FAMILIES[name] for name in ("gpt2", "llama", "neox")}, "mixtral": mixtral}
WRAPPED: dict[str, Callable[[str], str]] = {
    "compiled": "_orig_mod.{}".format,
    "data parallel": "module.{}".format,
    "both": "module._orig_mod.{}".format,
    "compiled in part": lambda name: name.replace(".1.", ".1._orig_mod."),
    "sharded": lambda name: name.replace(".0.", ".0._fsdp_wrapped_module._checkpoint_wrapped_module."),
}
Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"


def renamed(name: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name(key): tensor for key, tensor in tensors.items()}


def replaced(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: change(t).contiguous() if k == key else t for k, t in tensors.items()}


@pytest.mark.parametrize(
    ("family", "wrapper"), [*(("llama", wrapper) for wrapper in WRAPPED), *((family, "both") for family in MAKERS)]
)
def test_names_of_wrappers_are_removed(family: str, wrapper: str, tmp_path: Path) -> None:
    model = MAKERS[family]()
    model.save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    rewrite(tmp_path, renamed(WRAPPED[wrapper]))
    loaded = load(tmp_path).model
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(load(tmp_path / "again").model.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {k: t for k, t in tensors.items() if k != Q}, f"lacks weights of .*: {Q}"),
        (lambda tensors: {k: t for k, t in tensors.items() if "layers.1" not in k}, "layers.1.* and 6 more"),
        (renamed("student.{}".format), "does not know student."),
        (replaced(Q, lambda weight: weight[:, :5]), rf"{Q} \(24 x 5 instead of 24 x 24\)"),
        (replaced(Q, lambda weight: weight.flatten()), rf"{Q} \(576 instead of 24 x 24\)"),
        (replaced(NORM, lambda weight: weight / 0), f"not finite numbers: {NORM};"),
        (replaced(NORM, lambda weight: weight * float("nan")), f"not finite numbers: {NORM};"),
        (lambda tensors: {**tensors, Q.replace("weight", "bias"): torch.ones(24)}, "no place: .*q_proj.bias"),
        (lambda tensors: {**tensors, Q + "_scale": torch.ones(1)}, "no place: .*q_proj.weight_scale"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="12KB" if "lacks" in message else "1GB")
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("tensor", ["w1", "w2", "w3"])
def test_a_missing_expert_is_refused_by_name(tensor: str, tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    lost = f"experts.2.{tensor}.weight"
    rewrite(tmp_path, lambda tensors: {k: t for k, t in tensors.items() if not (".1." in k and k.endswith(lost))})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.experts\.(gate_up|down)_proj"):
        load(tmp_path)


def test_a_weight_beyond_the_range_of_the_dtype_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    rewrite(tmp_path, replaced(NORM, lambda weight: weight * 1e6))
    load(tmp_path)
    with pytest.raises(UserError, match=f"{NORM}; .* model.dtype"):
        load(tmp_path, dtype="float16")


def test_pickled_weights_are_checked_too(tmp_path: Path) -> None:
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(load(tmp_path, allow_pickle=True).model.state_dict(), model.state_dict())
    del tensors["_orig_mod.transformer.wpe.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"transformer.wpe.weight"):
        load(tmp_path, allow_pickle=True)


def test_tensors_that_no_model_needs_are_accepted(tmp_path: Path) -> None:
    """Tied heads are stored once, and old checkpoints have buffers that models now compute."""
    gpt2().save_pretrained(tmp_path / "gpt2")
    rewrite(tmp_path / "gpt2", lambda tensors: {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    load(tmp_path / "gpt2")
    llama().save_pretrained(tmp_path / "llama")
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in range(2)}
    rewrite(tmp_path / "llama", lambda tensors: {**tensors, **old})
    load(tmp_path / "llama")
    rewrite(tmp_path / "llama", lambda tensors: {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(UserError, match=r"lm_head.weight"):
        load(tmp_path / "llama")
    configure(tmp_path / "llama", tie_word_embeddings=True)
    load(tmp_path / "llama")
