"""Invariant: a fitted curvature equals a dense float64 eigendecomposition, and its fold equals a dense solve.

A wrong basis or a wrong lambda would reorder proponents without any other symptom.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import NO_ROWS, Scan, ScanRequest, ScanResult, scan_blocks
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature, identity_curvature
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 6, 8, 6, 8), LayerSpec("b", 5, 4, 5, 4))
LAYOUT = CodeLayout(LAYERS, CodeSpec("rank", 1, "float32"))
DIMS = [layer.dim for layer in LAYERS]


def make_rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales with a decaying spectrum, so that a truncation has an effect."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, LAYOUT.width, generator=generator)
    decay = torch.exp(-torch.arange(LAYOUT.width) / 6.0)
    scales = 0.5 + torch.rand(count, len(LAYERS), generator=generator)
    return codes * decay, scales


def scan_of(codes: torch.Tensor, scales: torch.Tensor, block: int = 7) -> Scan:
    def scan(request: ScanRequest) -> ScanResult:
        return scan_blocks(zip(codes.split(block), scales.split(block), strict=True), LAYOUT, request)

    return scan


def dense(codes: torch.Tensor, scales: torch.Tensor, layer: int) -> np.ndarray:
    return LAYOUT.decode(codes.double(), scales.double(), layer).numpy()


def fit(codes: torch.Tensor, scales: torch.Tensor, spec: CurvatureSpec) -> dict[int, LayerCurvature]:
    return fit_layers([0, 1], DIMS, len(codes), spec, scan_of(codes, scales))


@pytest.mark.parametrize("rows", [12, 200])
@pytest.mark.parametrize("damping", ["retained", "trace", "paper", 0.3])
def test_exact_fold_is_the_dense_solve(rows: int, damping: str | float) -> None:
    codes, scales = make_rows(rows)
    fitted = fit(codes, scales, CurvatureSpec("exact", damping=damping))
    for layer, curvature in fitted.items():
        G = dense(codes, scales, layer)
        eigenvalues = np.linalg.eigvalsh(G.T @ G)[::-1][: min(rows, DIMS[layer])]
        expected_damping = {
            "retained": 0.5 * eigenvalues.mean(), "trace": 0.5 * (G**2).sum() / DIMS[layer],
            "paper": 0.1 * eigenvalues.mean(), 0.3: 0.3,
        }[damping]  # fmt: skip
        assert curvature.damping == pytest.approx(expected_damping, rel=1e-5)
        H = G.T @ G + curvature.damping * np.eye(DIMS[layer])
        queries = np.random.default_rng(1).standard_normal((3, DIMS[layer]))
        expected = np.linalg.solve(H, queries.T).T
        folded = curvature.fold(torch.from_numpy(queries).float()).numpy()
        assert np.linalg.norm(folded - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("rows", [12, 200])
def test_woodbury_at_full_rank_is_exact(rows: int) -> None:
    codes, scales = make_rows(rows)
    exact = fit(codes, scales, CurvatureSpec("exact"))
    woodbury = fit(codes, scales, CurvatureSpec("woodbury", rank=max(DIMS)))
    queries = [torch.randn(4, dim, generator=torch.Generator().manual_seed(2)) for dim in DIMS]
    for layer in (0, 1):
        assert woodbury[layer].damping == pytest.approx(exact[layer].damping, rel=1e-5)
        torch.testing.assert_close(
            woodbury[layer].fold(queries[layer]), exact[layer].fold(queries[layer]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("power_iterations", [1, 3, 8])
def test_truncated_spectrum_is_within_the_bound_of_subspace_iteration(power_iterations: int) -> None:
    """Ritz values are below the eigenvalues by at most (D / k) (lambda_k+1 / lambda_j)^2q of them (Saad 5.2)."""
    codes, scales = make_rows(300)
    rank, oversample = 6, 4
    fitted = fit(codes, scales, CurvatureSpec("woodbury", rank, oversample, power_iterations))
    for layer, curvature in fitted.items():
        G = dense(codes, scales, layer)
        eigenvalues = np.linalg.eigvalsh(G.T @ G)[::-1]
        expected, beyond = eigenvalues[:rank], eigenvalues[rank + oversample]
        bound = DIMS[layer] / (rank + oversample) * (beyond / expected) ** (2 * power_iterations)
        ritz, stored = curvature.sigma2[:rank].numpy(), len(curvature.sigma2)
        assert rank < stored <= 2 * rank == 2 * curvature.rank
        assert (ritz <= expected * (1 + 1e-5)).all()
        assert (ritz >= expected * (1 - bound - 1e-5)).all()
        torch.testing.assert_close(curvature.basis.T @ curvature.basis, torch.eye(stored), atol=1e-5, rtol=0)
        assert curvature.energy == pytest.approx(ritz.sum() / (G**2).sum(), rel=1e-5)


def test_stored_components_beyond_the_rank_do_not_affect_a_query() -> None:
    codes, scales = make_rows(300)
    (fitted, _) = fit(codes, scales, CurvatureSpec("woodbury", rank=6, oversample=4)).values()
    truncated = replace(fitted, sigma2=fitted.sigma2[:6], basis=fitted.basis[:, :6])
    queries = torch.randn(4, DIMS[0], generator=torch.Generator().manual_seed(2))
    assert len(fitted.sigma2) > 6
    assert torch.equal(fitted.fold(queries), truncated.fold(queries)) and fitted.energy == truncated.energy


def test_tail_uses_the_mean_energy_outside_the_basis() -> None:
    codes, scales = make_rows(300)
    (curvature, _) = fit(codes, scales, CurvatureSpec("woodbury", rank=6, tail="tail")).values()
    inside = float(curvature.sigma2[:6].sum())
    mean_tail = (curvature.trace - inside) / (DIMS[0] - 6)
    assert curvature.outside == pytest.approx(curvature.damping + mean_tail)
    orthogonal = torch.randn(1, DIMS[0])
    orthogonal -= orthogonal @ curvature.basis @ curvature.basis.T
    torch.testing.assert_close(curvature.fold(orthogonal), orthogonal / curvature.outside, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_sums_do_not_depend_on_blocks_or_workers(rows: int, block: int, workers: int) -> None:
    codes, scales = make_rows(rows)
    request = ScanRequest("product", {0: torch.randn(DIMS[0], 3, generator=torch.Generator().manual_seed(0))})
    expected = scan_of(codes, scales, rows)(request)
    total = NO_ROWS
    for part in range(workers + 1):
        selected = slice(part, None, workers + 1)
        if len(codes[selected]):
            total += scan_of(codes[selected], scales[selected], block)(request)
    assert total.rows == rows
    torch.testing.assert_close(total.matrices[0], expected.matrices[0], rtol=1e-4, atol=1e-4)
    assert total.traces[0] == pytest.approx(expected.traces[0], rel=1e-5)


def test_the_curvature_none_does_not_change_a_query() -> None:
    queries = torch.randn(2, 5)
    torch.testing.assert_close(identity_curvature(5).fold(queries), queries)


def test_the_fold_of_a_layer_without_gradient_is_finite() -> None:
    codes, scales = make_rows(20)
    fitted = fit(codes, torch.zeros_like(scales), CurvatureSpec("woodbury", rank=4))
    assert torch.isfinite(fitted[0].fold(torch.ones(1, DIMS[0]))).all()
