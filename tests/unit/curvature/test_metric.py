"""Invariants: folding a newer metric into the query equals whitening the codes again; equal covariances have no
drift.
"""

import pytest
import torch

from lorif_core.curvature.metric import drift, layer_metric, mix_covariances
from lorif_core.gradients.whitening import SIDES, Covariances, KroneckerWhitening, inverse_root, root

D1, D2 = 7, 5


def covariances(seed: int, tokens: int = 400, stretch: float = 1.0) -> Covariances:
    """Covariances of random tokens in random directions."""
    generator = torch.Generator().manual_seed(seed)
    covariances = Covariances(tokens=tokens, examples=tokens // 10)
    for side, size in zip(SIDES, (D1, D2), strict=True):
        x = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64) * stretch
        covariances.sums[0, side] = x.T @ x
    return covariances


@pytest.mark.parametrize("stretch", [1.0, 1e-9])
def test_folding_equals_whitening_the_codes_again(stretch: float) -> None:
    frozen, newer = covariances(0), covariances(1, stretch=stretch)
    generator = torch.Generator().manual_seed(2)
    query, rows = torch.randn(3, D1, D2, generator=generator), torch.randn(20, D1, D2, generator=generator)

    def whitened(raw: torch.Tensor, covariances: Covariances) -> torch.Tensor:
        left, right = (KroneckerWhitening(covariances).matrix(0, side)[1] for side in SIDES)
        return left @ raw.double() @ right

    codes = whitened(rows, frozen).flatten(1)
    folded = layer_metric(frozen, newer, 0).fold(whitened(query, frozen).flatten(1).float())
    expected = whitened(query, newer).flatten(1) @ whitened(rows, newer).flatten(1).T
    torch.testing.assert_close(
        folded.double() @ codes.T, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def test_the_frozen_metric_folds_a_query_to_itself_and_has_no_drift() -> None:
    frozen = covariances(0)
    query = torch.randn(2, D1 * D2)
    torch.testing.assert_close(layer_metric(frozen, frozen, 0).fold(query), query, rtol=1e-5, atol=1e-5)
    distance = drift(frozen, frozen, ["a"])
    assert distance.mean < 1e-8 and distance.worst < 1e-8
    torch.testing.assert_close(
        root(frozen.mean(0, "in")) @ inverse_root(frozen.mean(0, "in")), torch.eye(D1).double()
    )


def test_drift_has_the_layer_that_drifts_most_and_its_distance() -> None:
    """If the energy grows by a factor in every direction, the drift is the logarithm of the factor."""
    frozen, newer = covariances(0), covariances(0)
    for side in SIDES:
        frozen.sums[1, side] = newer.sums[1, side] = covariances(3).sums[0, side]
    newer.sums = {key: sums * (1.5 if key == (1, "in") else 1.0) for key, sums in newer.sums.items()}
    distance = drift(frozen, newer, ["first", "second"])
    assert distance.layer == "second" and distance.worst == pytest.approx(0.4055, rel=1e-3)
    assert distance.mean == pytest.approx(0.4055 / 4, rel=1e-3)


def test_new_data_are_weighted_by_their_share_of_the_tokens() -> None:
    base, sample = covariances(0, tokens=300), covariances(1, tokens=50)
    mixed = mix_covariances(base, 9000, sample, 1000)
    assert (mixed.tokens, mixed.examples) == (10000, 35)
    for side in SIDES:
        torch.testing.assert_close(mixed.mean(0, side), 0.9 * base.mean(0, side) + 0.1 * sample.mean(0, side))
    again = mix_covariances(mixed, 10000, sample, 10000)
    torch.testing.assert_close(again.mean(0, "in"), 0.45 * base.mean(0, "in") + 0.55 * sample.mean(0, "in"))
