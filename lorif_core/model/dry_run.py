"""Which linear layers of a model can be captured: a run with fake tensors, which have shapes but no numbers.

A layer's gradient is the sum over tokens of input times output gradient. So its module must be called with a
tensor whose rows belong to one example each, return such a tensor, and be the only user of its weight. A dry run
sees this without weights, without memory and in about a second, because it only follows shapes. It is the same on
every machine. A model whose operations depend on numbers cannot be followed; then the self-check finds the layers.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorif_core.model.experts import ExpertMatrix, TrackedModule
from lorif_core.model.layers import linear_layers, modules_by_weight
from lorif_core.model.token_rows import rows_per_example

log = logging.getLogger(__name__)

_BATCH, _TOKENS = 2, 6  # different, so that a shape tells batch and tokens apart

NEVER_CALLED = "is never called, or its weight is used without calling it"
NO_TENSOR = "returns something other than one tensor"
NO_GRADIENT = "does not affect the loss"
USED_OUTSIDE = "has a weight that is also used without calling the layer"


@dataclass(slots=True)
class _Layer:
    """A weight and what was seen of it: the first reason against a use, and how often it was called."""

    modules: list[TrackedModule]
    calls: int = 0
    fault: str | None = None


def uncapturable_layers(model: Any) -> dict[str, str]:
    """Names of the linear layers that cannot be captured, each with the reason; nothing if that cannot be seen.

    Args:
        model: a transformers causal language model on the meta device. It stays as it is.
    """
    model = copy.deepcopy(model)  # an adapter on parameters does not survive the run
    sharing = modules_by_weight(model)
    layers = {name: _Layer(sharing[id(module.weight)]) for name, module in linear_layers(model).items()}
    try:
        reached, direct = _reached_weights(model, layers), _weights_used_outside(model, layers)
    except Exception as error:  # noqa: BLE001  the model's code may raise anything when it needs numbers
        log.info("the layers of this model cannot be examined without weights (%s)", type(error).__name__)
        return {}
    reasons = {name: _reason(layer, name in reached, name in direct) for name, layer in layers.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(layer: _Layer, reached: bool, direct: bool) -> str | None:
    if not layer.calls:
        return NEVER_CALLED
    return layer.fault or (None if reached else NO_GRADIENT) or (USED_OUTSIDE if direct else None)


def _reached_weights(model: Any, layers: Mapping[str, _Layer]) -> set[str]:
    """Names of the weights that affect the output; notes every call of a module."""

    def note(layer: _Layer, module: TrackedModule, inputs: tuple[Any, ...], output: Any) -> None:
        layer.calls += 1
        layer.fault = layer.fault or _fault(module, inputs, output)

    with _hooked(layers, before=None, after=note):
        return _run(model, layers)


def _weights_used_outside(model: Any, layers: Mapping[str, _Layer]) -> set[str]:
    """Names of the weights that affect the output even if calls of their modules are constant in them."""

    def freeze(layer: _Layer, module: TrackedModule) -> None:
        module.weight.requires_grad_(False)

    def unfreeze(layer: _Layer, module: TrackedModule, inputs: tuple[Any, ...], output: Any) -> None:
        module.weight.requires_grad_(True)

    with _hooked(layers, before=freeze, after=unfreeze):
        return _run(model, layers)


@contextmanager
def _hooked(layers: Mapping[str, _Layer], before: Any, after: Any) -> Iterator[None]:
    handles = []

    def pre_hook(layer: _Layer, module: TrackedModule, *_: Any) -> None:
        before(layer, module)

    def hook(layer: _Layer, module: TrackedModule, _: Any, inputs: Any, named: Any, output: Any) -> None:
        # the capture sees what experts are called with by name, but of other layers not
        after(layer, module, (*inputs, *named.values()) if isinstance(module, ExpertMatrix) else inputs, output)

    for layer in layers.values():
        for module in layer.modules:
            called = module.module if isinstance(module, ExpertMatrix) else module
            if before is not None:
                handles.append(called.register_forward_pre_hook(partial(pre_hook, layer, module)))
            handles.append(called.register_forward_hook(partial(hook, layer, module), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, layers: Mapping[str, _Layer]) -> set[str]:
    """One forward pass with fake tensors; returns the names of the layers whose weights the logits depend on."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # the only one whose shapes do not depend on the routing
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes: dict[int, torch.Tensor] = {}
        state = {name: _fake(tensor, fakes) for name, tensor in _tensors(model)}
        weights = {name: fakes[id(layer.modules[0].weight)] for name, layer in layers.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        ids = torch.zeros(_BATCH, _TOKENS, dtype=torch.long)
        with torch.enable_grad():
            arguments = {"input_ids": ids, "use_cache": False}
            logits = torch.func.functional_call(model, state, kwargs=arguments).logits
            if not logits.requires_grad:
                return set()
            grads = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True)
    return {name for name, grad in zip(weights, grads, strict=True) if grad is not None}


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _fake(tensor: torch.Tensor, fakes: dict[int, torch.Tensor]) -> torch.Tensor:
    """The fake tensor on the CPU for a tensor; one for all names of a shared tensor."""
    if id(tensor) not in fakes:
        fakes[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
    return fakes[id(tensor)]


def _fault(module: TrackedModule, inputs: tuple[Any, ...], output: Any) -> str | None:
    """Why a call of a layer's module cannot be captured."""
    if not torch.is_grad_enabled():
        return NO_GRADIENT
    if not isinstance(output, torch.Tensor):
        return NO_TENSOR
    is_experts = isinstance(module, ExpertMatrix)
    if len(inputs) != (3 if is_experts else 1) or not isinstance(inputs[0], torch.Tensor):
        return f"is called with something other than {'three tensors' if is_experts else 'one tensor'}"
    rows = [rows_per_example(tensor.shape, _BATCH, _TOKENS) for tensor in (inputs[0], output)]
    sizes = inputs[0].shape[-1], output.shape[-1]
    shape = 2 * inputs[0].shape[-1:] if is_experts else module.weight.shape
    if rows[0] is None or rows[0] != rows[1] or sizes not in (shape, shape[::-1]):
        return f"has tensors of shape {tuple(inputs[0].shape)} for a batch of {_BATCH} x {_TOKENS} tokens"
    return None
