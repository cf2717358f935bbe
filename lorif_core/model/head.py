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
        ends_linear: whether logits = weight @ input of the output layer + bias, behind layers of the head.
    """

    is_linear: bool
    width: int
    is_tokenwise: bool = False
    ends_linear: bool = False


def inspect_head(model: Any, ids_BT: torch.Tensor) -> Head:
    """Run the model while its head returns test values: a head is linear only if they are the model's logits."""
    layer = model.get_output_embeddings()
    with torch.no_grad():
        if not isinstance(layer, torch.nn.Linear) or inner_model(model) is model:
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
        width, tolerance = logits.shape[-1], rounding(model)
        if len(calls) == 1 and _ends_linear(layer, logits, *calls[0], tolerance):
            hidden = inner_model(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
            head_input = calls[0][0]
            if hidden.shape == head_input.shape and is_close(hidden, head_input, tolerance):
                return Head(True, width)
            return Head(False, width, ends_linear=head_input.shape[:-1] == ids_BT.shape)
        logits = model(input_ids=ids_BT, use_cache=False).logits
        return Head(False, width, _is_tokenwise(model, ids_BT, logits))


def inner_model(model: Any) -> Any:
    """The part of a model below its head, or the model itself if it has no such part."""
    if model.base_model is not model:
        return model.base_model
    embedding = model.get_input_embeddings()  # a text model of a larger one has the name of the latter's parts
    inner = (child for child in model.children() if child is not embedding and embedding in set(child.modules()))
    return next(inner, model)


def logits_function(model: Any, output: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """(N, H) hidden states -> (N, V) logits, by the model's own code.

    Its forward pass runs with N texts of one token, while its base model returns the hidden states.

    Args:
        model: a model whose head is tokenwise.
        output: what its base model returned.
    """

    def logits_of(hidden_NH: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(len(hidden_NH), 1, dtype=torch.long, device=hidden_NH.device)
        result = type(output)(last_hidden_state=hidden_NH[:, None])
        with _replaced(inner_model(model), lambda *_, **__: result):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, 0]

    return logits_of


def output_layer_input(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """What a model gives to its output layer, (B, T, H); the layer computes no logits."""
    inputs: list[torch.Tensor] = []

    def record(hidden_BTH: torch.Tensor) -> torch.Tensor:
        inputs.append(hidden_BTH)
        return hidden_BTH[..., :1]

    with _replaced(model.get_output_embeddings(), record):
        model(input_ids=ids_BT, use_cache=False)
    return inputs[-1]


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let calls of a module call `forward` instead of its own."""
    former = module.__dict__.get("forward")  # of the object: accelerate replaces it there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if former is not None:
            module.forward = former


def _is_tokenwise(model: Any, ids_BT: torch.Tensor, logits_BTV: torch.Tensor) -> bool:
    """Whether the head gives the same logits for single tokens in another order.

    A head with linear layers before the output layer is left alone: their gradients are captured, so all tokens
    must pass them at once.
    """
    inner, output_layer = inner_model(model), model.get_output_embeddings()
    if inner is model:
        return False
    outer = set(model.modules()) - set(inner.modules()) - {output_layer}
    if any(isinstance(module, torch.nn.Linear | Conv1D) for module in outer):
        return False
    output = inner(input_ids=ids_BT, use_cache=False)
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


def _ends_linear(
    layer: torch.nn.Linear,
    logits: torch.Tensor,
    head_input: torch.Tensor,
    head_output: torch.Tensor,
    test_values: torch.Tensor,
    tolerance: float,
) -> bool:
    """Whether the logits are what the output layer returns, and that is a linear function of its input."""
    if logits.shape != test_values.shape or not torch.equal(logits, test_values.to(logits)):
        return False
    # of a model on several devices the hook has the input before it moves to that of the layer
    expected = torch.nn.functional.linear(head_input.to(layer.weight.device), layer.weight, layer.bias)
    return is_close(expected, head_output, tolerance)
