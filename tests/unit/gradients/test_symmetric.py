"""Invariants: packed matrices come back within the rounding of their levels, at any rank and magnitude; sums of
parts do not depend on their order beyond rounding, and the same parts give the same bits.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.symmetric import add_sums, pack, pack_sum, tree_sum

CPU = torch.device("cpu")
LIKE = torch.empty(0, dtype=torch.float64)
SIZES = st.sampled_from([1, 2, 31, 32, 33, 64, 100])
MAGNITUDES = st.sampled_from([1e-30, 1e-9, 1.0, 1e20])


def gram(size: int, rank: int, seed: int, magnitude: float = 1.0, spread: float = 0.0) -> torch.Tensor:
    """x^T x with coordinates of very different size if `spread` is large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rank, size)) * np.exp(spread * rng.standard_normal(size))
    return torch.from_numpy(x.T @ x) * magnitude


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(0, 40), st.integers(0, 99), MAGNITUDES, st.sampled_from([0.0, 3.0]))
def test_stored_matrices_come_back(size: int, rank: int, seed: int, magnitude: float, spread: float) -> None:
    """Every entry is right to 2^-11 of the geometric mean of the diagonal entries of its row and column."""
    matrix = gram(size, rank, seed, magnitude, spread)
    packed = pack(matrix)
    back = packed.dense(LIKE)
    scale = torch.outer(matrix.diagonal().sqrt(), matrix.diagonal().sqrt())
    assert packed.size == size and packed.levels.dtype == np.float16
    assert torch.equal(back, back.T)
    assert ((back - matrix).abs() <= 5.1e-4 * scale).all()
    assert torch.equal(packed.dense(torch.empty(0)).double(), back) or magnitude < 1e-20
    assert packed.nbytes <= 2 * (size * (size + 1) / 2 + 16 * size) + 8 * size


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_a_matrix_that_must_be_exact_is_exact(size: int, seed: int) -> None:
    matrix = gram(size, 5, seed)
    assert torch.equal(pack(matrix, np.float64).dense(LIKE), (matrix + matrix.T) / 2)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 99), MAGNITUDES, st.randoms())
def test_sums_do_not_depend_on_the_order_of_parts(
    size: int, parts: int, seed: int, magnitude: float, random
) -> None:  # type: ignore[no-untyped-def]
    matrices = [gram(size, 3, seed + number, magnitude) for number in range(parts)]
    exact = sum(matrices[1:], matrices[0])
    packed = [pack_sum(matrix) for matrix in matrices]
    total = add_sums(packed, CPU)
    assert (total - exact).norm() <= 1e-7 * exact.norm()
    assert torch.equal(total, add_sums(packed, CPU)), "the same parts in the same order"
    random.shuffle(packed)
    assert (add_sums(packed, CPU) - total).norm() <= 1e-14 * total.norm()


@given(st.integers(1, 70))
def test_a_tree_has_few_sums_in_memory(count: int) -> None:
    alive: set[int] = set()
    most = 0

    class Term:
        def __init__(self, terms: int) -> None:
            nonlocal most
            self.terms = terms
            alive.add(id(self))
            most = max(most, len(alive))

        def __add__(self, other: "Term") -> "Term":
            return Term(self.terms + other.terms)

        def __del__(self) -> None:
            alive.discard(id(self))

    total = tree_sum(Term(1) for _ in range(count))  # type: ignore[misc]
    assert total.terms == count  # type: ignore[attr-defined]
    assert most <= count.bit_length() + 3


@pytest.mark.parametrize("field", ["scales", "levels"])
def test_any_changed_number_changes_the_digest(field: str) -> None:
    packed, other = (pack(gram(40, 50, 0)) for _ in range(2))
    assert packed.digest == other.digest
    getattr(other, field)[3] *= 1.5
    assert pack(gram(40, 50, 0)).digest == packed.digest
    changed = type(other)(other.scales, other.levels)
    assert changed.digest != packed.digest
