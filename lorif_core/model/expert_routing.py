"""Which rows go to which expert, products of them with the experts' matrices, and who may observe them.

Shapes: N tokens, K experts per token, S = N K rows sorted by expert, H hidden size, I and O sizes of an expert.
"""

from typing import Protocol

import torch
from torch._subclasses.fake_tensor import is_fake

_FIRST_WITH_KERNEL = (8, 0)
"""The compute capability of the first GPUs on which torch has a product of groups."""


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

    def rows_of_tokens(self) -> torch.Tensor:
        """(N, K): the numbers of the rows of each token."""
        return self._back.unflatten(0, (-1, self._per_token))

    def sum_by_token(self, rows_Sd: torch.Tensor) -> torch.Tensor:
        """(N, d): the sum of the rows of each token, always in the same order."""
        return rows_Sd[self._back].unflatten(0, (-1, self._per_token)).sum(dim=1)


def grouped_product(rows_SI: torch.Tensor, weight_EIO: torch.Tensor, experts_S: torch.Tensor) -> torch.Tensor:
    """(S, O): each row times the matrix of its expert; `experts_S` ascends."""
    numbers = torch.arange(len(weight_EIO), device=experts_S.device)
    ends_E = torch.searchsorted(experts_S, numbers, right=True, out_int32=True)
    is_fused = is_fake(weight_EIO) or _has_kernel(weight_EIO)  # fake tensors have no numbers to loop over
    product = fused_product if is_fused else looped_product
    return product(rows_SI.to(weight_EIO.dtype), weight_EIO, ends_E)


def fused_product(rows_SI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """`grouped_product` by one kernel, which needs sizes of a multiple of 16 bytes and knows no float64.

    Args:
        rows_SI: the rows, sorted by expert.
        weight_EIO: the matrices.
        ends_E: int32, the row after the last one of each expert.
    """
    return torch.nn.functional.grouped_mm(rows_SI, weight_EIO, offs=ends_E)


def looped_product(rows_SI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """`fused_product` for all sizes and dtypes, which a GPU has to wait for."""
    parts, start = [], 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            parts.append(rows_SI[start:end] @ weight_EIO[expert])
        start = end
    return torch.cat(parts) if parts else rows_SI.new_zeros(0, weight_EIO.shape[2])


def _has_kernel(weight_EIO: torch.Tensor) -> bool:
    if not weight_EIO.is_cuda or weight_EIO.dtype == torch.float64:
        return False
    if torch.cuda.get_device_capability(weight_EIO.device) < _FIRST_WITH_KERNEL:
        return False
    return all(size * weight_EIO.element_size() % 16 == 0 for size in weight_EIO.shape[1:])


class Observer(Protocol):
    """Sees a matrix at work, and may replace its output."""

    def __call__(self, rows: torch.Tensor, output: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return the output to go on with.

        Args:
            rows: hidden states (N, H) for the first matrix; neurons (S, I), not weighted, for `down_proj`.
            output: (S, O) of the first matrix; (N, H) of `down_proj`, weighted and summed by token.
            routing: the routing.
        """
