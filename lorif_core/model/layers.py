"""The tracked layers of a model: selection by a regex, shapes, and their share of the parameters."""

import re

import torch
from transformers.pytorch_utils import Conv1D

from lorif_core.errors import UserError
from lorif_core.spec import Coverage, LayerSpec, projected_size


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every nn.Linear and Conv1D by name, except the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def select_layers(model: torch.nn.Module, pattern: str | None) -> dict[str, torch.nn.Module]:
    """Linear layers whose name contains a match of the regex; all of them for None.

    Raises:
        UserError: the regex is malformed, or matches no layer (the message lists the layers).
    """
    layers = linear_layers(model)
    if pattern is None:
        return layers
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise UserError(f"model.layers = {pattern!r} is not a regular expression: {error}") from None
    selected = {name: module for name, module in layers.items() if matcher.search(name)}
    if not selected:
        listed = ", ".join(list(layers)[:40]) + (f" and {len(layers) - 40} more" if len(layers) > 40 else "")
        raise UserError(f"model.layers = {pattern!r} matches none of the linear layers, which are {listed}")
    return selected


def layer_specs(layers: dict[str, torch.nn.Module], factor: int) -> tuple[LayerSpec, ...]:
    """Shapes of the layers and of their projected gradients; Conv1D stores its weight transposed."""
    specs = []
    for name, module in layers.items():
        rows, cols = module.weight.shape
        inner, outer = (rows, cols) if isinstance(module, Conv1D) else (cols, rows)
        specs.append(LayerSpec(name, inner, outer, projected_size(inner, factor), projected_size(outer, factor)))
    return tuple(specs)


def coverage(model: torch.nn.Module, layers: dict[str, torch.nn.Module]) -> Coverage:
    """Number of parameters whose gradients are tracked, and the untracked ones by group."""
    weights = {id(module.weight) for module in layers.values()}
    groups: dict[str, int] = {}
    tracked = total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if id(parameter) in weights:
            tracked += parameter.numel()
        else:
            group = _group(model, name, parameter)
            groups[group] = groups.get(group, 0) + parameter.numel()
    return Coverage(tracked, total, tuple(sorted(groups.items(), key=lambda item: -item[1])))


def _group(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> str:
    """The group under which an untracked parameter is reported."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, torch.nn.Embedding):
        return "embeddings"
    if name.endswith("bias"):
        return "biases"
    if isinstance(owner, torch.nn.Linear | Conv1D):
        return "output head" if owner is model.get_output_embeddings() else "linear layers left out"
    if parameter.dim() == 3:
        return f"fused experts ({type(owner).__name__})"
    return "norms" if "norm" in type(owner).__name__.lower() else type(owner).__name__
