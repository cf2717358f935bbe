"""Adam's second moments of the weights of a model, from the optimiser that trained it.

They come from the optimiser of a running training, or from a file of one of two kinds. Reading runs no code:

- What `torch.save(optimizer.state_dict(), path)` writes, such as `optimizer.pt` of transformers' Trainer. It is
  read with `weights_only=True`, so it has tensors and numbers, and no other objects. Parameters have names there
  if the optimiser was made of `model.named_parameters()`, and numbers otherwise. Numbers are taken in the order of
  the Trainer, whose first group has the weights that decay and whose second one has the others, or in that of
  `model.parameters()` if there is one group. All shapes must fit.
- Safetensors with a tensor `exp_avg_sq.NAME`, in the shape of the weight, for each tracked parameter of
  `model.named_parameters()`. Their values are taken as they are: v, corrected for its bias, without eps.
"""

import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorif_core.errors import UserError
from lorif_core.model.layers import tracked_module
from lorif_core.model.weights import ADAPTER_NAME, name_in_model
from lorif_core.spec import LayerSpec

PREFIX = "exp_avg_sq."
"""Begins the names of the tensors of a file of safetensors."""

_WITHOUT_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")  # as the Trainer has it
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError, SafetensorError)
_ADVICE = (
    "make the optimiser of model.named_parameters(), or save its moments as safetensors with the tensors "
    f"{PREFIX}NAME"
)


@dataclass(frozen=True, slots=True)
class SecondMoments:
    """v of a weight, and what makes Adam's divisor P = sqrt(v / correction) + eps of it.

    Attributes:
        values: v, in the shape of the weight; a file's are read when they are used.
        correction: 1 - beta2^steps, what v lacks because it began at zero.
        eps: the eps of the optimiser.
    """

    values: torch.Tensor
    correction: float = 1.0
    eps: float = 0.0

    def squared(self) -> torch.Tensor:
        """P^2, in the shape of the weight. If FSDP has cut the weight, every process must call this."""
        values: Any = self.values.detach()
        values = values.full_tensor() if hasattr(values, "full_tensor") else values
        wide = values if values.dtype == torch.float64 else values.float()
        return (wide / self.correction).sqrt_().add_(self.eps).square_()


def read_moments(path: Path, model: Any, layers: Sequence[LayerSpec]) -> list[SecondMoments]:
    """The second moments of the layers' weights, from a file.

    Args:
        path: the file; its ending `.safetensors` says which of the two kinds it is.
        model: the model, or its skeleton.
        layers: the tracked layers.

    Raises:
        UserError: the file is of neither kind, or its parameters are not those of the model.
    """
    by_name = _in_safetensors(path) if path.suffix == ".safetensors" else _in_state_dict(path, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for layer in layers:
        weight = tracked_module(model, layer.name).weight
        name = names[id(weight)]
        if name not in by_name:
            raise UserError(
                f"{path} has no second moments (exp_avg_sq) of {name}, which was not trained, or not with Adam; "
                f"leave the layer {layer.name} out with model.exclude, or use another curvature.kind"
            )
        if by_name[name].values.shape != weight.shape:
            raise _other_shape(path, name, by_name[name].values.shape, weight.shape)
        found.append(by_name[name])
    return found


def live_moments(optimizers: Iterable[torch.optim.Optimizer], weight: torch.Tensor) -> SecondMoments | None:
    """The second moments of a weight in a running training; None if none of the optimisers has any."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(parameter is weight for parameter in group["params"]):
                return _moments(optimizer.state.get(weight, {}), group)
    return None


def _moments(entry: Mapping[str, Any], group: Mapping[str, Any]) -> SecondMoments | None:
    """The moments in the state of a parameter; None without any. AMSGrad divides by the largest ones so far."""
    values = entry.get("max_exp_avg_sq", entry.get("exp_avg_sq"))
    if not isinstance(values, torch.Tensor):
        return None
    steps = float(entry.get("step", group.get("step", 0)))
    correction = 1 - group["betas"][1] ** steps if "betas" in group and steps else 1.0
    return SecondMoments(values, correction, group.get("eps", 0.0))


def _in_safetensors(path: Path) -> dict[str, SecondMoments]:
    try:
        tensors = load_file(path)
    except _UNREADABLE as error:
        raise _unreadable(path) from error
    return {
        name_in_model(name.removeprefix(PREFIX)): SecondMoments(tensor)
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }


def _in_state_dict(path: Path, model: Any) -> dict[str, SecondMoments]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        groups, entries = state["param_groups"], state["state"]
        keys = [(key, group) for group in groups for key in group["params"]]
        found = {key: _moments(entries.get(key, {}), group) for key, group in keys}
    except (*_UNREADABLE, TypeError, AttributeError) as error:
        raise _unreadable(path) from error
    moved = {key: moments for key, moments in found.items() if moments is not None}
    names = _names(path, groups, {key: moments.values.shape for key, moments in moved.items()}, model)
    if len(names) != len(found):
        raise _unreadable(path)
    return {name: moved[key] for name, key in zip(names, found, strict=True) if key in moved}


def _names(
    path: Path, groups: Sequence[Mapping[str, Any]], shapes: Mapping[Any, torch.Size], model: Any
) -> list[str]:
    """The names of the parameters of all groups, one group after another."""
    keys = [key for group in groups for key in group["params"]]
    if keys and all(isinstance(key, str) for key in keys):  # of a training that was distributed
        return [name_in_model(key) for key in keys]
    if all("param_names" in group for group in groups):
        return [name_in_model(name) for group in groups for name in group["param_names"]]
    trained = _trained(model)
    ordered = [list(trained)]
    if len(groups) > 1:
        ordered = [[name for name in trained if _decays(model, name) is decays] for decays in (True, False)]
    sizes, expected = [len(group["params"]) for group in groups], [len(names) for names in ordered]
    if sizes != expected:
        raise UserError(
            f"{path} has parameters by number in groups of {_listed(sizes)}, but those of the model are in groups "
            f"of {_listed(expected)}; {_ADVICE}"
        )
    names = [name for group in ordered for name in group]
    for key, name in zip(keys, names, strict=True):
        if key in shapes and shapes[key] != trained[name].shape:
            raise _other_shape(path, name, shapes[key], trained[name].shape)
    return names


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that a training moves: all, or those of an adapter."""
    adapts = getattr(model, "_hf_peft_config_loaded", False)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not adapts or ADAPTER_NAME in name.split(".")
    }


def _decays(model: Any, name: str) -> bool:
    """Whether the Trainer lets a parameter decay."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return not isinstance(owner, torch.nn.LayerNorm) and _WITHOUT_DECAY.search(name.lower()) is None


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} cannot be read as the state of an optimiser; it must be what torch.save writes of "
        f"optimizer.state_dict(), without other objects, or safetensors"
    )


def _other_shape(path: Path, name: str, found: Sequence[int], expected: Sequence[int]) -> UserError:
    return UserError(
        f"{path} has second moments of {_listed(found, ' x ')} numbers for {name}, which has "
        f"{_listed(expected, ' x ')}; name the state of the optimiser that trained this model, or {_ADVICE}"
    )


def _listed(numbers: Iterable[int], separator: str = " and ") -> str:
    return separator.join(map(str, numbers))
