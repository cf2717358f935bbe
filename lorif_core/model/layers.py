"""The tracked layers of a model: what can be tracked, shapes, and their share of the parameters.

A layer is a weight matrix. Linear modules that share one are one layer with the name of the first. The matrices of
fused experts are one layer for all experts of a block (`experts.py`).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers.pytorch_utils import Conv1D

from lorif_core.errors import UserError
from lorif_core.formatting import listed
from lorif_core.model.experts import ExpertMatrix, TrackedModule, expert_matrices
from lorif_core.model.layer_choice import ALL, AUTO, LATE_BLOCKS, MLP, Choice, choose, compile_regex, layer_sizes
from lorif_core.model.weights import without_wrappers
from lorif_core.spec import Coverage, LayerSpec, folded_sizes, projected_size

_NONE: Mapping[str, str] = MappingProxyType({})
_LISTED = 40
_WIDER = 2
"""Size of the folded neurons of all experts over that of the hidden state (`benchmarks/results/experts.json`)."""
_GROUPS = {"norm": "norms", "conv": "convolutions"}


def linear_layers(model: torch.nn.Module) -> dict[str, TrackedModule]:
    """Every nn.Linear, Conv1D and matrix of fused experts by name, one for each weight.

    The output head, and what it shares, are not among them. Wrappers of a training, such as torch's checkpoint
    around a block, do not show in the names.
    """
    untracked = _head_parameters(model) | _parameters_of_other_modules(model)
    layers: dict[int, tuple[str, TrackedModule]] = {}
    for path, module in model.named_modules():
        name = without_wrappers(path)
        if _is_linear(module) and id(module.weight) not in untracked:
            layers.setdefault(id(module.weight), (name, module))
        for matrix in expert_matrices(module):
            layers.setdefault(id(matrix.weight), (f"{name}.{matrix.parameter}", matrix))
    return dict(layers.values())


def modules_by_weight(model: torch.nn.Module) -> dict[int, list[TrackedModule]]:
    """The modules that have the same weight, in the order of the model, by the id of the weight."""
    modules: dict[int, list[TrackedModule]] = {}
    for module in model.modules():
        if _is_linear(module):
            modules.setdefault(id(module.weight), []).append(module)
        for matrix in expert_matrices(module):
            modules.setdefault(id(matrix.weight), []).append(matrix)
    return modules


def tracked_module(model: torch.nn.Module, name: str) -> TrackedModule:
    """The layer of a name.

    Raises:
        AttributeError: the model has none of this name.
    """
    owner, _, parameter = name.rpartition(".")
    for matrix in expert_matrices(model.get_submodule(owner)):
        if matrix.parameter == parameter:
            return matrix
    return model.get_submodule(name)


def out_by_in(module: TrackedModule, weight: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape of a layer's weight as (O, I); the neurons of experts follow one another."""
    if isinstance(module, ExpertMatrix):
        weight_EOI = weight.transpose(1, 2) if module.module.is_transposed else weight
        return weight_EOI.transpose(0, 1).flatten(1) if module.is_down else weight_EOI.flatten(0, 1)
    return weight.T if isinstance(module, Conv1D) else weight


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def _parameters_of_other_modules(model: torch.nn.Module) -> set[int]:
    """Ids of the parameters of modules that are not linear layers, which may share them with one."""
    others = (module for module in model.modules() if not _is_linear(module))
    return {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


def _head_parameters(model: torch.nn.Module) -> set[int]:
    """Ids of the parameters of the output head, and of adapters in it."""
    return {id(parameter) for head in _heads(model) for parameter in head.parameters()}


def _heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The output head; without a declared one, every linear layer whose outputs are as many as the tokens."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        return [head]
    config = getattr(model, "config", None)
    vocabulary = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    linear = [module for module in model.modules() if _is_linear(module)]
    return [module for module in linear if layer_sizes(module)[1] == vocabulary]


def select_layers(
    model: torch.nn.Module,
    rule: str = ALL,
    exclude: str | None = None,
    uncapturable: Mapping[str, str] = _NONE,
) -> dict[str, TrackedModule]:
    """The linear layers to track. See `choose_layers`."""
    return choose_layers(model, rule, exclude, uncapturable).layers


def choose_layers(
    model: torch.nn.Module,
    rule: str = ALL,
    exclude: str | None = None,
    uncapturable: Mapping[str, str] = _NONE,
    late_blocks: int = LATE_BLOCKS,
) -> Choice:
    """The linear layers to track, and why.

    Args:
        model: the model, or its skeleton.
        rule: `model.layers`: `all`, `mlp`, `auto` or a regex (`layer_choice.py`).
        exclude: `model.exclude`, a regex of layers to leave out.
        uncapturable: layers that cannot be captured, with the reason; they are left out.
        late_blocks: number of blocks that `auto` takes of a deep model, at most the last half of them.

    Raises:
        UserError: a regex is malformed, or no layer remains (the message lists the layers).
    """
    layers = linear_layers(model)
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear layer to track besides its output head")
    unwanted = None if exclude is None else compile_regex("model.exclude", exclude)
    wanted = {name: module for name, module in layers.items() if not (unwanted and unwanted.search(name))}
    if not wanted:
        raise UserError(
            f"model.exclude = {exclude!r} leaves out all linear layers, which are {listed(list(layers), _LISTED)}"
        )
    possible = {name: module for name, module in wanted.items() if name not in uncapturable}
    is_pattern = rule not in (ALL, MLP, AUTO)
    asked = list(choose(wanted, rule, _width(model)).layers if is_pattern else wanted)
    if not any(name in possible for name in asked):
        raise UserError(
            f"no layer of this model can be tracked: {asked[0]} {uncapturable[asked[0]]}, and {len(asked) - 1} "
            f"others"
        )
    return choose(possible, rule, _width(model), late_blocks)


def _width(model: torch.nn.Module) -> int | None:
    """Size of the residual stream; None if the configuration does not say."""
    config = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "hidden_size", None)


def layer_specs(layers: Mapping[str, TrackedModule], factor: int) -> tuple[LayerSpec, ...]:
    """Shapes of the layers and of their random projections of a factor.

    The neurons of all experts together become as few as those of one; a factor of 1 projects nothing.
    """

    def spec(name: str, module: TrackedModule) -> LayerSpec:
        together = factor == 1 or not isinstance(module, ExpertMatrix)
        inner, outer = layer_sizes(module) if together else module.sizes_of_one
        return LayerSpec(name, *layer_sizes(module), projected_size(inner, factor), projected_size(outer, factor))

    return tuple(spec(name, module) for name, module in layers.items())


def folded_layer_specs(
    layers: Mapping[str, TrackedModule], fold: int | None = None, max_side: int | None = None
) -> tuple[LayerSpec, ...]:
    """Shapes of the layers and of their folded projections. See `folded_sizes`; experts are folded less."""

    def spec(name: str, module: TrackedModule) -> LayerSpec:
        shape = layer_sizes(module)
        d1, d2 = folded_sizes(*shape, fold, max_side)
        if not isinstance(module, ExpertMatrix):
            return LayerSpec(name, *shape, d1, d2)
        narrow, wide = (d2, d1) if module.is_down else (d1, d2)
        if fold is None:
            wide = min(_WIDER * narrow, module.neurons * module.experts, max_side or _WIDER * narrow)
        if wide > module.neurons:  # the experts of one group of buckets share all of them
            wide -= wide % module.neurons
        return LayerSpec(name, *shape, *((wide, narrow) if module.is_down else (narrow, wide)))

    return tuple(spec(name, module) for name, module in layers.items())


def coverage(
    model: torch.nn.Module, layers: Mapping[str, TrackedModule], uncapturable: Mapping[str, str] = _NONE
) -> Coverage:
    """Number of parameters whose gradients are tracked, and the untracked ones by group."""
    weights, head = {id(module.weight) for module in layers.values()}, _head_parameters(model)
    groups: dict[str, int] = {}
    tracked = total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if id(parameter) in weights:
            tracked += parameter.numel()
        else:
            group = _group(model, name, parameter, uncapturable, is_head=id(parameter) in head)
            groups[group] = groups.get(group, 0) + parameter.numel()
    return Coverage(tracked, total, tuple(sorted(groups.items(), key=lambda item: -item[1])))


def _group(
    model: torch.nn.Module,
    name: str,
    parameter: torch.nn.Parameter,
    uncapturable: Mapping[str, str],
    *,
    is_head: bool,
) -> str:
    """The group under which an untracked parameter is reported."""
    layer, _, part = name.rpartition(".")
    owner = model.get_submodule(layer)
    if isinstance(owner, torch.nn.Embedding):
        return "embeddings"
    if part.endswith("bias"):
        return "biases"
    if is_head:
        return "output head"
    is_matrix = any(matrix.parameter == part for matrix in expert_matrices(owner))
    layer = name if is_matrix else layer
    if (is_matrix or part == "weight") and layer in uncapturable:
        return f"{re.sub(r'[0-9]+', '*', layer)} ({uncapturable[layer]})"
    if is_matrix or _is_linear(owner):
        return "linear layers left out"
    kind = type(owner).__name__
    if parameter.dim() == 3 and "expert" in f"{kind} {name}".lower():
        return f"fused experts ({kind})"
    return next((group for word, group in _GROUPS.items() if word in kind.lower()), kind)
