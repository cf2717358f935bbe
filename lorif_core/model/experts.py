"""Fused experts: all experts of a block in three-dimensional weights, as transformers 5 has them.

The experts of a block are one MLP of many neurons, of which each token uses a few: `gate_up_proj` maps the hidden
state to the neurons of all experts, one expert after another, and `down_proj` maps them back. So each of the two
weights is one linear layer, wide at the side of the neurons. The input of `down_proj` is multiplied by the routing
weights. It is zero at experts that a token does not use, and so is the output gradient of `gate_up_proj`.

Shapes: E experts, I and O input and output size of one expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_DOWN = "down_proj"
_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "num_experts")
"""What transformers' `use_experts_implementation` and its classes set."""


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """One matrix of all experts of a block: the parameter `parameter` of `module`."""

    module: torch.nn.Module
    parameter: str

    @property
    def weight(self) -> torch.nn.Parameter:
        """(E, O, I), or (E, I, O) if the module is transposed."""
        weight: torch.nn.Parameter = getattr(self.module, self.parameter)
        return weight

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.weight)

    @property
    def is_down(self) -> bool:
        """Whether it is the second matrix, whose inputs are the neurons."""
        return self.parameter == _DOWN

    @property
    def sizes_of_one(self) -> tuple[int, int]:
        """(I, O)."""
        _, rows, cols = self.weight.shape
        return (rows, cols) if self.module.is_transposed else (cols, rows)

    @property
    def neurons(self) -> int:
        """Size of the wide side of one expert."""
        return self.sizes_of_one[0 if self.is_down else 1]

    @property
    def sizes(self) -> tuple[int, int]:
        """Input and output size of the layer that all experts are together."""
        inner, outer = self.sizes_of_one
        return (inner * self.experts, outer) if self.is_down else (inner, outer * self.experts)

    def gradients(self, gradient: torch.Tensor) -> Iterator[torch.Tensor]:
        """The gradient (I, O) of each expert, from that of the weight."""
        yield from (gradient if self.module.is_transposed else gradient.transpose(1, 2))


TrackedModule = torch.nn.Module | ExpertMatrix
"""What a tracked layer is in the model; both have a `weight`."""


def expert_matrices(module: torch.nn.Module) -> Iterator[ExpertMatrix]:
    """The matrices of a module of fused experts; none of other modules and of experts that work otherwise."""
    if not all(hasattr(module, flag) for flag in _FLAGS) or module.has_post_expert_norm:
        return
    for name in ("gate_up_proj" if module.has_gate else "up_proj", _DOWN):
        weight = module._parameters.get(name)
        if weight is None or weight.dim() != 3 or weight.dtype.itemsize == 1 or len(weight) != module.num_experts:
            continue
        yield ExpertMatrix(module, name)
