"""How a model's logits follow from its last hidden state, so that the loss needs few of them at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

_LOGITS = (0.0, 1e-3, 0.37, -5.0, 60.0, -1e3, 3e4)
"""Test values of all sizes, so that a cap, a scale or a bias changes some of them by more than rounding."""


class Head(NamedTuple):
    """What a forward pass tells about a model's output.

    Attributes:
        is_linear: whether logits = weight @ last hidden state + bias.
        width: number of logits of a token; labels must be smaller.
        is_tokenwise: whether a token's logits are any function of its last hidden state alone, such as logits that
            are capped or scaled.
    """

    is_linear: bool
    width: int
    is_tokenwise: bool = False


def inspect_head(model: Any, ids_BT: torch.Tensor) -> Head:
    """Run the model while its head returns test values: a head is linear only if they are the model's logits."""
    layer = model.get_output_embeddings()
    with torch.no_grad():
        if not isinstance(layer, torch.nn.Linear) or model.base_model is model:
            logits = model(input_ids=ids_BT, use_cache=False).logits
            return Head(False, logits.shape[-1], _is_tokenwise(model, ids_BT, logits))
        calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

        def replace(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            values = torch.tensor(_LOGITS, dtype=output.dtype, device=output.device)
            test_values = values.repeat(output.numel() // len(values) + 1)[: output.numel()].view_as(output)
            calls.append((inputs[0], output, test_values.clone()))
            return test_values

        handle = layer.register_forward_hook(replace)
        try:
            logits = model(input_ids=ids_BT, use_cache=False).logits
        finally:
            handle.remove()
        if len(calls) == 1 and _is_linear(model, layer, ids_BT, logits, *calls[0]):
            return Head(True, logits.shape[-1], True)
        logits = model(input_ids=ids_BT, use_cache=False).logits
        return Head(False, logits.shape[-1], _is_tokenwise(model, ids_BT, logits))


def logits_function(model: Any, output: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """(N, H) hidden states -> (N, V) logits, by the model's own code.

    Its forward pass runs with N texts of one token, while its base model returns the hidden states.

    Args:
        model: a model whose head is tokenwise.
        output: what its base model returned.
    """

    def logits_of(hidden_NH: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(len(hidden_NH), 1, dtype=torch.long, device=hidden_NH.device)
        with _returning(model.base_model, type(output)(last_hidden_state=hidden_NH[:, None])):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, 0]

    return logits_of


@contextmanager
def _returning(module: torch.nn.Module, output: Any) -> Iterator[None]:
    """Let calls of a module return `output`."""
    forward = module.__dict__.get("forward")  # of the object: accelerate replaces it there
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
        if forward is not None:
            module.forward = forward


def _is_tokenwise(model: Any, ids_BT: torch.Tensor, logits_BTV: torch.Tensor) -> bool:
    """Whether the head gives the same logits for single tokens in another order.

    A head with linear layers before the output layer is left alone: their gradients are captured, so all tokens
    must pass them at once.
    """
    if model.base_model is model:
        return False
    inner, output_layer = set(model.base_model.modules()), model.get_output_embeddings()
    outer = [module for module in model.modules() if module not in inner and module is not output_layer]
    if any(isinstance(module, torch.nn.Linear | Conv1D) for module in outer):
        return False
    output = model.base_model(input_ids=ids_BT, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.shape[:2] != ids_BT.shape:
        return False
    try:
        logits = logits_function(model, output)(hidden.flatten(0, 1).flip(0))
    except Exception:  # noqa: BLE001  the model's code may raise anything for hidden states that are not its own
        return False
    expected = logits_BTV.flatten(0, 1).flip(0)
    return logits.shape == expected.shape and is_close(logits, expected, rounding(model))


def rounding(model: torch.nn.Module) -> float:
    """Relative difference that rounding may make: half the digits of the coarsest dtype of 16 bits or more.

    That is at most float32, in which models of float64 also compute softmax and norms.
    """
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()} | {torch.float32}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize > 1) ** 0.5


def is_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether no value differs by more than the tolerance, relative to the largest value."""
    difference = (actual.to(expected) - expected).abs().max()
    return bool(difference <= tolerance * expected.abs().max())


def _is_linear(
    model: Any,
    layer: torch.nn.Linear,
    ids_BT: torch.Tensor,
    logits: torch.Tensor,
    head_input: torch.Tensor,
    head_output: torch.Tensor,
    test_values: torch.Tensor,
) -> bool:
    if logits.shape != test_values.shape or not torch.equal(logits, test_values.to(logits)):
        return False
    tolerance = rounding(model)
    if not is_close(torch.nn.functional.linear(head_input, layer.weight, layer.bias), head_output, tolerance):
        return False
    hidden = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden.shape == head_input.shape and is_close(hidden, head_input, tolerance)
