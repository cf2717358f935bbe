"""The tracked layers of a model: what can be tracked, shapes, and their share of the parameters.

A layer is a weight matrix. Linear modules that share one are one layer with the name of the first.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers.pytorch_utils import Conv1D

from lorif_core.errors import UserError
from lorif_core.formatting import listed
from lorif_core.model.layer_choice import ALL, AUTO, LATE_BLOCKS, MLP, Choice, choose, compile_regex, layer_sizes
from lorif_core.spec import Coverage, LayerSpec, folded_sizes, projected_size

_NONE: Mapping[str, str] = MappingProxyType({})
_LISTED = 40
_GROUPS = {"norm": "norms", "conv": "convolutions"}


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every nn.Linear and Conv1D by name, one for each weight, except the output head and what it shares."""
    untracked = _head_parameters(model) | _parameters_of_other_modules(model)
    layers: dict[int, tuple[str, torch.nn.Module]] = {}
    for name, module in model.named_modules():
        if _is_linear(module) and id(module.weight) not in untracked:
            layers.setdefault(id(module.weight), (name, module))
    return dict(layers.values())


def modules_by_weight(model: torch.nn.Module) -> dict[int, list[torch.nn.Module]]:
    """The linear modules that have the same weight, in the order of the model, by the id of the weight."""
    modules: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        if _is_linear(module):
            modules.setdefault(id(module.weight), []).append(module)
    return modules


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
) -> dict[str, torch.nn.Module]:
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


def layer_specs(layers: Mapping[str, torch.nn.Module], factor: int) -> tuple[LayerSpec, ...]:
    """Shapes of the layers and of their random projections of a factor."""
    shapes = {name: layer_sizes(module) for name, module in layers.items()}
    return tuple(
        LayerSpec(name, inner, outer, projected_size(inner, factor), projected_size(outer, factor))
        for name, (inner, outer) in shapes.items()
    )


def folded_layer_specs(
    layers: Mapping[str, torch.nn.Module], fold: int | None = None, max_side: int | None = None
) -> tuple[LayerSpec, ...]:
    """Shapes of the layers and of their folded projections. See `folded_sizes`."""
    shapes = {name: layer_sizes(module) for name, module in layers.items()}
    return tuple(LayerSpec(name, *shape, *folded_sizes(*shape, fold, max_side)) for name, shape in shapes.items())


def coverage(
    model: torch.nn.Module, layers: Mapping[str, torch.nn.Module], uncapturable: Mapping[str, str] = _NONE
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
    if part == "bias":
        return "biases"
    if is_head:
        return "output head"
    if part == "weight" and layer in uncapturable:
        return f"{re.sub(r'[0-9]+', '*', layer)} ({uncapturable[layer]})"
    if _is_linear(owner):
        return "linear layers left out"
    kind = type(owner).__name__
    if parameter.dim() == 3 and "expert" in f"{kind} {name}".lower():
        return f"fused experts ({kind})"
    return next((group for word, group in _GROUPS.items() if word in kind.lower()), kind)
