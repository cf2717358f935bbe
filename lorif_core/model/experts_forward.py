"""The forward pass of fused experts with access to what enters and leaves their matrices.

It is an implementation for transformers' `ALL_EXPERTS_FUNCTIONS`, and computes what `grouped_mm` does. `observed`
selects it while it is open. The self-check compares with the model's own implementation.

Shapes: N tokens, K experts per token, S = N K rows sorted by expert, H hidden size, I and O sizes of an expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lorif_core.model.expert_routing import Observer, Routing, grouped_product
from lorif_core.model.experts import ExpertMatrix

_NAME = "lorif"

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
