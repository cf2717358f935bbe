"""Invariants: folding a newer metric into the query equals whitening the codes again; equal covariances have no
drift; no metric computes an eigendecomposition.
"""

import pytest
import torch

from lorif_core.curvature.metric import (
    LayerMetric,
    drift,
    exact_metric,
    metric_folds,
    mixed_mean,
    side_drift,
    translation,
)
from lorif_core.gradients.roots import SideMatrices, exact_roots, stored_roots
from lorif_core.gradients.whitening import SIDES, Covariances
from lorif_core.spec import LayerSpec

D1, D2 = 7, 5
KINDS = pytest.mark.parametrize("kind", ["stored", "computed"])


def covariances(seed: int, tokens: int = 400, stretch: float = 1.0) -> Covariances:
    """Covariances of random tokens in random directions."""
    generator = torch.Generator().manual_seed(seed)
    covariances = Covariances(tokens=tokens, examples=tokens // 10)
    for side, size in zip(SIDES, (D1, D2), strict=True):
        x = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64) * stretch
        covariances.sums[0, side] = x.T @ x
    return covariances


def roots(of: Covariances, kind: str = "stored") -> SideMatrices:
    """The roots as an index has them, or as they are computed for an older one."""
    if kind == "computed":
        return exact_roots(of)
    return SideMatrices({(side.summary.layer, side.summary.side): side.matrix for side in stored_roots(of)[1]})


LAYERS = [LayerSpec("layer", D1, D2, D1, D2)]


def fold(frozen: SideMatrices, newer: SideMatrices, queries: torch.Tensor) -> torch.Tensor:
    (metric,) = metric_folds(exact_metric(frozen, newer), LAYERS)
    assert isinstance(metric, LayerMetric)
    return metric.fold(queries)


def whitened(raw: torch.Tensor, by: SideMatrices) -> torch.Tensor:
    left, right = (by.matrix(0, side)[1] for side in SIDES)
    return (left @ raw.double() @ right).flatten(1)


def no_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("eigh", "eigvalsh", "svd"):
        monkeypatch.setattr(torch.linalg, name, lambda *_: pytest.fail("an eigendecomposition"))


@KINDS
@pytest.mark.parametrize("stretch", [1.0, 1e-9])
def test_folding_equals_whitening_the_codes_again(
    kind: str, stretch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, newer = roots(covariances(0), kind), roots(covariances(1, stretch=stretch), kind)
    no_eigenvalues(monkeypatch)
    generator = torch.Generator().manual_seed(2)
    query, rows = torch.randn(3, D1, D2, generator=generator), torch.randn(20, D1, D2, generator=generator)
    codes = whitened(rows, frozen)
    folded = fold(frozen, newer, whitened(query, frozen).float())
    expected = whitened(query, newer) @ whitened(rows, newer).T
    torch.testing.assert_close(
        folded.double() @ codes.T, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


@KINDS
def test_a_translated_query_scores_old_codes_like_new_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = roots(covariances(0), kind), roots(covariances(1), kind)
    no_eigenvalues(monkeypatch)
    generator = torch.Generator().manual_seed(3)
    query, rows = torch.randn(3, D1, D2, generator=generator), torch.randn(20, D1, D2, generator=generator)
    folded = translation(newer, older, 0).fold(whitened(query, newer).float())
    expected = whitened(query, newer) @ whitened(rows, newer).T
    # <W, A_n^-1/2 G S_n^-1/2> is what rows in the newer whitening would get
    torch.testing.assert_close(
        folded.double() @ whitened(rows, older).T, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def test_the_frozen_metric_folds_a_query_to_itself_and_has_no_drift() -> None:
    frozen = roots(covariances(0))
    query = torch.randn(2, D1 * D2)
    torch.testing.assert_close(fold(frozen, frozen, query), query, rtol=1e-5, atol=1e-5)
    assert all(side_drift(exact_metric(frozen, frozen).matrix(0, side)[1]) < 1e-8 for side in SIDES)


def test_drift_has_the_layer_that_drifts_most_and_its_distance() -> None:
    """If the energy grows by a factor in every direction, the drift is the logarithm of the factor."""
    frozen, newer = covariances(0), covariances(0)
    newer.sums[0, "in"] = newer.sums[0, "in"] * 1.5
    metric = exact_metric(roots(frozen), roots(newer))
    grown, same = (side_drift(metric.matrix(0, side)[1]) for side in SIDES)
    assert grown == pytest.approx(0.4055, rel=1e-3) and same < 1e-8
    distance = drift([same, same, grown, same], ["first", "first", "second", "second"])
    assert distance.layer == "second" and distance.worst == grown
    assert distance.mean == pytest.approx(0.4055 / 4, rel=1e-3)


def test_new_data_are_weighted_by_their_share_of_the_tokens() -> None:
    base, sample = covariances(0, tokens=300).mean(0, "in"), covariances(1, tokens=50).mean(0, "in")
    mixed = mixed_mean(base, 9000, sample, 1000)
    torch.testing.assert_close(mixed, 0.9 * base + 0.1 * sample)
    torch.testing.assert_close(mixed_mean(mixed, 10000, sample, 10000), 0.45 * base + 0.55 * sample)
