"""The forward pass of fused experts with access to what enters and leaves their matrices.

It is an implementation for transformers' `ALL_EXPERTS_FUNCTIONS`, and computes what `grouped_mm` does. A matrix can be
observed: `observed` selects this implementation while it is open. The self-check compares with the model's own.

Shapes: N tokens, K experts per token, S = N K rows sorted by expert, H hidden size, I and O sizes of an expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lorif_core.model.experts import ExpertMatrix

_NAME = "lorif"


class Routing:
    """Which rows go to which expert.

    Args:
        experts_NK: the experts of each token; numbers from `count` on stand for none.
        count: number of experts.

    Attributes:
        experts: (S,) the expert of each row, ascending.
        tokens: (S,) the token of each row.
        weights: (S,) routing weights; zero for rows without an expert.
    """

    def __init__(self, experts_NK: torch.Tensor, weights_NK: torch.Tensor, count: int) -> None:
        self._per_token = experts_NK.shape[-1]
        chosen = experts_NK.reshape(-1)
        order = torch.argsort(chosen.clamp(max=count - 1), stable=True)
        self._back = torch.argsort(order)
        self.experts = chosen[order].clamp(max=count - 1)
        self.tokens = order // self._per_token
        self.weights = weights_NK.reshape(-1).masked_fill(chosen >= count, 0.0)[order]

    def sum_by_token(self, rows_Sd: torch.Tensor) -> torch.Tensor:
        """(N, d): the sum of the rows of each token, always in the same order."""
        return rows_Sd[self._back].unflatten(0, (-1, self._per_token)).sum(dim=1)


def grouped_product(rows_SI: torch.Tensor, weight_EIO: torch.Tensor, experts_S: torch.Tensor) -> torch.Tensor:
    """(S, O): each row times the matrix of its expert; `experts_S` ascends."""
    rows_SI = rows_SI.to(weight_EIO.dtype)
    numbers = torch.arange(len(weight_EIO), device=experts_S.device)
    ends = torch.searchsorted(experts_S, numbers, right=True, out_int32=True)
    if rows_SI.is_cuda and weight_EIO.dtype != torch.float64:
        return torch.nn.functional.grouped_mm(rows_SI, weight_EIO, offs=ends)
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            parts.append(rows_SI[start:end] @ weight_EIO[expert])
        start = end
    return torch.cat(parts) if parts else rows_SI.new_zeros(0, weight_EIO.shape[2])


class Observer(Protocol):
    """Sees a matrix at work, and may replace its output."""

    def __call__(self, rows: torch.Tensor, output: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return the output to go on with.

        Args:
            rows: hidden states (N, H) of the first matrix, or neurons (S, I) of `down_proj`, without routing weights.
            output: rows (S, O) of the first matrix, or (N, H) of `down_proj`, weighted and summed by token.
            routing: the routing.
        """


_observers: WeakKeyDictionary[torch.nn.Module, dict[str, Observer]] = WeakKeyDictionary()


@contextmanager
def observed(observers: Mapping[ExpertMatrix, Observer]) -> Iterator[None]:
    """Call each observer whenever its matrix is used."""
    configs = {id(matrix.module.config): matrix.module.config for matrix in observers}
    before = [(config, config._experts_implementation) for config in configs.values()]
    for matrix, observer in observers.items():
        _observers.setdefault(matrix.module, {})[matrix.parameter] = observer
    try:
        for config, _ in before:
            config._experts_implementation = _NAME
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation
        for matrix in observers:
            _observers.pop(matrix.module, None)


def _forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' output (N, H), as transformers' `grouped_mm_experts_forward` without a norm of each expert."""
    observers = _observers.get(self, {})
    routing = Routing(top_k_index, top_k_weights, self.num_experts)
    name = "gate_up_proj" if self.has_gate else "up_proj"
    rows = _product(self, name, hidden_states[routing.tokens], routing)
    if name in observers:
        rows = observers[name](hidden_states, rows, routing)
    neurons = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    weighted = _product(self, "down_proj", neurons, routing) * routing.weights[:, None]
    output = routing.sum_by_token(weighted)
    if "down_proj" in observers:
        output = observers["down_proj"](neurons, output, routing)
    return output.to(hidden_states.dtype)


def _product(module: Any, name: str, rows_SI: torch.Tensor, routing: Routing) -> torch.Tensor:
    """(S, O): a matrix applied, with its bias."""
    weight = getattr(module, name)
    weight = weight if module.is_transposed else weight.transpose(1, 2)
    output = grouped_product(rows_SI, weight, routing.experts)
    return output + getattr(module, f"{name}_bias")[routing.experts] if module.has_bias else output


ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
