"""Whether a model's logits are a linear layer of its last hidden state, so that the loss needs no autograd."""

from typing import Any, NamedTuple

import torch

_LOGITS = (0.0, 1e-3, 0.37, -5.0, 60.0, -1e3, 3e4)
"""Test values of all sizes, so that a cap, a scale or a bias changes some of them by more than rounding."""


class Head(NamedTuple):
    """What a forward pass tells about a model's output.

    Attributes:
        is_linear: whether logits = weight @ last hidden state + bias.
        width: number of logits of a token; labels must be smaller.
    """

    is_linear: bool
    width: int


def inspect_head(model: Any, ids_BT: torch.Tensor) -> Head:
    """Run the model while its head returns test values: a head is linear only if they are the model's logits."""
    layer = model.get_output_embeddings()
    with torch.no_grad():
        if not isinstance(layer, torch.nn.Linear) or model.base_model is model:
            return Head(False, model(input_ids=ids_BT, use_cache=False).logits.shape[-1])
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
        return Head(len(calls) == 1 and _is_linear(model, layer, ids_BT, logits, *calls[0]), logits.shape[-1])


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
