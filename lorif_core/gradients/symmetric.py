"""Symmetric matrices without their lower triangle: the sum of a part of a sample, and the form that is stored.

Both keep strips of a few rows from the diagonal on, so that packing and unpacking copy a few slices. The stored
form has float16 levels in [-1, 1] and a scale for each row: M_ij = s_i s_j q_ij with s_i^2 = M_ii. So the few
large coordinates that language models have take no accuracy from the others.

Shapes: d the size of a matrix, P packed entries.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from xxhash import xxh3_64

from lorif_core.gradients.shared_tensor import shared_tensor

_ROWS = 32  # of a strip: more rows store more of the lower triangle, fewer need more copies


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A positive semi-definite matrix (d, d) as it is stored.

    Attributes:
        scales: (d,) float64, each a float32 times one power of two.
        levels: (P,) float16; float64 if the matrix is only in memory and must be exact.
    """

    scales: np.ndarray
    levels: np.ndarray

    @property
    def size(self) -> int:
        """The size d."""
        return len(self.scales)

    @property
    def nbytes(self) -> int:
        """Bytes of scales and levels."""
        return self.scales.nbytes + self.levels.nbytes

    @cached_property
    def digest(self) -> int:
        """64 bits that identify the matrix."""
        digest = xxh3_64(f"{self.size}/{self.levels.dtype}/".encode())
        digest.update(self.scales.data)
        digest.update(self.levels.data)
        return digest.intdigest()

    def dense(self, like: torch.Tensor) -> torch.Tensor:
        """The matrix (d, d) in the dtype and on the device of `like`; the same numbers everywhere."""
        unit = _unit(self.scales)
        relative = torch.from_numpy(self.scales / unit).to(like.device)
        matrix = _unpacked(shared_tensor(self.levels).to(like.device), self.size)
        relative = relative.to(matrix.dtype)
        matrix *= torch.outer(relative, relative)
        return matrix.to(like.dtype) * unit**2


def pack(matrix_dd: torch.Tensor, dtype: type[np.generic] = np.float16) -> PackedMatrix:
    """Round a positive semi-definite matrix to its stored form, or keep it exactly with `dtype` float64."""
    diagonal = matrix_dd.diagonal().double().clamp_min(0.0).sqrt().cpu().numpy()
    if dtype is np.float64:
        return PackedMatrix(np.ones_like(diagonal), _packed(matrix_dd.double()).cpu().numpy())
    unit = _unit(diagonal)
    relative = (diagonal / unit).astype(np.float32).astype(np.float64)
    scales = torch.from_numpy(relative * unit).to(matrix_dd.device)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    levels = _packed(matrix_dd.double() * inverse * inverse[:, None]).cpu().numpy().astype(dtype)
    return PackedMatrix(relative * unit, levels)


@dataclass(frozen=True, eq=False)
class PackedSum:
    """The sum (d, d) of x x^T over some tokens, to be sent to where it is added to others.

    Attributes:
        size: d.
        unit: a power of two that the levels are multiplied by.
        levels: (P,) float32.
    """

    size: int
    unit: float
    levels: np.ndarray


def pack_sum(matrix_dd: torch.Tensor) -> PackedSum:
    """Round a sum to float32, at any magnitude."""
    unit = _unit(matrix_dd.diagonal().double().cpu().numpy())
    return PackedSum(len(matrix_dd), unit, _packed(matrix_dd / unit).float().cpu().numpy())


def add_sums(parts: Sequence[PackedSum], device: torch.device) -> torch.Tensor:
    """The sum (d, d) over one or more parts, added in pairs in float64, on a device."""
    total = tree_sum(shared_tensor(part.levels).to(device).double() * part.unit for part in parts)
    return _unpacked(total, parts[0].size)


def tree_sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of one or more tensors, in pairs, then pairs of pairs: at most log2 of their number are in memory."""
    stack: list[tuple[int, torch.Tensor]] = []  # (number of terms in it, sum); the numbers fall
    for term in terms:
        count, total = 1, term
        while stack and stack[-1][0] == count:
            total = stack.pop()[1] + total
            count *= 2
        stack.append((count, total))
    _, total = stack.pop()
    while stack:
        total = stack.pop()[1] + total
    return total


def _packed(matrix_dd: torch.Tensor) -> torch.Tensor:
    """(P,): the strips, one after another."""
    return torch.cat([matrix_dd[start:stop, start:].reshape(-1) for start, stop in _strips(len(matrix_dd))])


def _unpacked(levels_P: torch.Tensor, size: int) -> torch.Tensor:
    """(d, d) in float64 for float64 levels, else in float32."""
    dtype = torch.float64 if levels_P.dtype == torch.float64 else torch.float32
    matrix, used = levels_P.new_empty(size, size, dtype=dtype), 0
    for start, stop in _strips(size):
        width = size - start
        count = (stop - start) * width
        matrix[start:stop, start:] = levels_P[used : used + count].view(-1, width)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        used += count
    return matrix


def _strips(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + _ROWS, size)) for start in range(0, size, _ROWS)]


def _unit(values: np.ndarray) -> float:
    """The power of two at or just above the largest value; 1 for zeros."""
    largest = float(values.max(initial=0.0))
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
