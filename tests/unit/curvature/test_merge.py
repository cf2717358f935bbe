"""Invariants: a merge of curvatures adds their matrices as far as ranks suffice; a removal is its inverse."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lorif_core.curvature.merge import downdate, merge
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import CodeSpec, LayerSpec

D1, D2 = 12, 10
DIM = D1 * D2
LAYOUT = CodeLayout((LayerSpec("a", D1, D2, D1, D2),), CodeSpec("dense", dtype="float32"))
GENEROUS = CurvatureSpec("woodbury", rank=40, oversample=10, power_iterations=3)


def scan_of(rows: torch.Tensor) -> object:
    return lambda request: scan_blocks([(rows, torch.ones(len(rows), 1))], LAYOUT, request)


def fit(rows: torch.Tensor, spec: CurvatureSpec) -> LayerCurvature:
    return fit_layers([0], [DIM], len(rows), spec, scan_of(rows))[0]


def gram(rows: torch.Tensor, basis: torch.Tensor) -> ScanResult:
    return scan_blocks([(rows, torch.ones(len(rows), 1))], LAYOUT, ScanRequest("gram", {0: basis}))


def matrix(fitted: LayerCurvature) -> np.ndarray:
    """V S^2 V^T in float64."""
    basis = fitted.basis.double()
    return ((basis * fitted.sigma2) @ basis.T).numpy()


def low_rank(count: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, DIM, generator=generator)


def noisy(count: int, seed: int = 0, drift: float = 0.0) -> torch.Tensor:
    """Rows with a decaying spectrum in common directions plus noise; `drift` rotates the directions."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.linalg.qr(torch.randn(DIM, 20, generator=torch.Generator().manual_seed(99))).Q
    other = torch.linalg.qr(torch.randn(DIM, 20, generator=torch.Generator().manual_seed(98))).Q
    directions = torch.linalg.qr(common + drift * other).Q
    strengths = 4.0 / torch.arange(1, 21).sqrt()
    return (torch.randn(count, 20, generator=generator) * strengths) @ directions.T + 0.3 * torch.randn(
        count, DIM, generator=generator
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_merging_is_exact_when_ranks_suffice(first: int, second: int, m: int, n: int, seed: int) -> None:
    """The matrix, its trace and lambda are those of all rows together in float64."""
    rows = [low_rank(m, first, seed), low_rank(n, second, seed + 1000)]
    spec = CurvatureSpec("woodbury", rank=40, oversample=4, power_iterations=2)
    merged = merge(*(fit(part, spec) for part in rows), spec)
    joined = torch.cat(rows).double()
    expected = (joined.T @ joined).numpy()
    assert np.linalg.norm(matrix(merged) - expected) <= 1e-5 * np.linalg.norm(expected)
    assert merged.trace == pytest.approx(np.trace(expected), rel=1e-5) and merged.rows == m + n
    refit = fit(torch.cat(rows), spec)
    assert merged.damping == pytest.approx(refit.damping, rel=1e-4)
    queries = torch.randn(4, DIM, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(merged.fold(queries), refit.fold(queries), rtol=1e-2, atol=1e-4 / refit.damping)


@pytest.mark.parametrize("kind", ["exact", "woodbury"])
@pytest.mark.parametrize("damping", ["retained", "trace", "paper", 3.0])
@pytest.mark.parametrize("tail", ["truncated", "tail"])
def test_a_full_basis_merges_to_the_refit_under_every_rule(kind: str, damping: object, tail: str) -> None:
    spec = CurvatureSpec(kind, rank=DIM, damping=damping, tail=tail)
    rows = noisy(400)
    merged, refit = merge(fit(rows[:150], spec), fit(rows[150:], spec), spec), fit(rows, spec)
    assert merged.damping == pytest.approx(refit.damping, rel=1e-4)
    assert merged.outside == pytest.approx(refit.outside, rel=1e-4)
    np.testing.assert_allclose(merged.sigma2, refit.sigma2, rtol=1e-4)
    queries = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged.fold(queries), refit.fold(queries), rtol=1e-3, atol=1e-5)


def spearman(rows: torch.Tensor, first: LayerCurvature, second: LayerCurvature) -> float:
    """Smallest rank correlation over queries with the distribution of the rows, as those of held-out examples."""
    queries = noisy(12, seed=77)
    scores = [(rows @ fitted.fold(queries).T).numpy() for fitted in (first, second)]
    return min(spearmanr(scores[0][:, q], scores[1][:, q]).statistic for q in range(len(queries)))


@pytest.mark.parametrize(
    ("damping", "tail", "drift"),
    [("retained", "truncated", 0.0), ("retained", "truncated", 0.5), ("paper", "tail", 0.0)],
)
@pytest.mark.parametrize("merges", [1, 8])
def test_scores_after_merges_are_those_of_a_refit(merges: int, damping: str, tail: str, drift: float) -> None:
    """The basis has a fifth of the dimensions, a little more than the signal; `drift` adds new directions."""
    spec = CurvatureSpec("woodbury", rank=24, damping=damping, tail=tail)
    parts = [noisy(1000), *(noisy(150, seed=n, drift=drift) for n in range(1, merges + 1))]
    merged = fit(parts[0], spec)
    for part in parts[1:]:
        merged = merge(merged, fit(part, spec), spec)
    refit = fit(torch.cat(parts), spec)
    assert merged.rows == refit.rows and merged.trace == pytest.approx(refit.trace, rel=1e-5)
    assert merged.damping == pytest.approx(refit.damping, rel=0.05)
    assert spearman(torch.cat(parts), merged, refit) >= 0.99


def test_a_flat_spectrum_merges_to_the_refit_and_the_refit_does_not_depend_on_its_seed() -> None:
    """Components inside and outside the rank weigh about the same; one block and r components give .949, .929."""
    spec = CurvatureSpec("woodbury", rank=16, oversample=4)
    rows = torch.randn(1500, DIM, generator=torch.Generator().manual_seed(5)) * torch.logspace(0.6, -0.6, DIM)
    pieces = [fit(part, spec) for part in (rows[:750], *rows[750:].split(94))]
    merged, refit = reduce(lambda first, second: merge(first, second, spec), pieces), fit(rows, spec)
    assert spearman(rows, merged, refit) >= 0.99
    assert spearman(rows, fit(rows, replace(spec, seed=1)), refit) >= 0.99


def test_energy_outside_one_basis_is_spread_evenly_over_the_other() -> None:
    """C1 = diag(10, 1, 1, ...) and C2 = diag(1, 20, 1, ...), each represented by one component and its trace."""
    spec = CurvatureSpec("woodbury", rank=2)
    axes = torch.eye(DIM)
    first = LayerCurvature(torch.tensor([10.0]).double(), axes[:, :1], 10.0 + DIM - 1, 50, 1.0, 1.0)
    second = LayerCurvature(torch.tensor([20.0]).double(), axes[:, 1:2], 20.0 + DIM - 1, 50, 1.0, 1.0)
    merged = merge(first, second, spec)
    np.testing.assert_allclose(merged.sigma2, [21, 11], rtol=1e-6)
    assert merged.tail == pytest.approx(2.0) and merged.trace == first.trace + second.trace


def test_removing_rows_equals_a_refit_without_them() -> None:
    """Equality holds within the span of the basis."""
    spec = CurvatureSpec("woodbury", rank=24)
    rows = noisy(1000)
    fitted, removed = fit(rows, spec), rows[:80]
    sums = gram(removed, fitted.basis)
    smaller = downdate(fitted, sums.matrices[0], sums.traces[0], sums.rows, spec)
    refit = fit(rows[80:], spec)
    assert smaller.rows == 920 and smaller.trace == pytest.approx(refit.trace, rel=1e-5)
    np.testing.assert_allclose(smaller.sigma2[:20], refit.sigma2[:20], rtol=0.02)
    assert smaller.damping == pytest.approx(refit.damping, rel=0.01)
    assert spearman(rows[80:], smaller, refit) >= 0.99


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(2, 40), st.integers(1, 39), st.integers(0, 100))
def test_removing_rows_is_exact_when_the_rank_suffices(rank: int, count: int, removed: int, seed: int) -> None:
    rows = low_rank(count, rank, seed)
    removed = min(removed, count - 1)
    fitted = fit(rows, GENEROUS)
    sums = gram(rows[:removed], fitted.basis)
    smaller = downdate(fitted, sums.matrices[0], sums.traces[0], removed, GENEROUS)
    remaining = rows[removed:].double()
    expected = (remaining.T @ remaining).numpy()
    assert (smaller.sigma2 >= 0).all()
    assert np.linalg.norm(matrix(smaller) - expected) <= 1e-5 * np.linalg.norm(matrix(fitted))


def test_merging_rows_without_gradient_changes_only_the_number_of_rows() -> None:
    empty = fit(torch.zeros(5, DIM), GENEROUS)
    rows = low_rank(30, 6, 0)
    fitted = fit(rows, GENEROUS)
    for merged in (merge(fitted, empty, GENEROUS), merge(empty, fitted, GENEROUS)):
        assert merged.rows == 35
        np.testing.assert_allclose(matrix(merged), matrix(fitted), atol=1e-4 * float(fitted.sigma2[0]))
    both_empty = merge(empty, empty, GENEROUS)
    assert both_empty.rows == 10 and len(both_empty.sigma2) >= 1
    assert torch.isfinite(both_empty.fold(torch.ones(1, DIM))).all()
