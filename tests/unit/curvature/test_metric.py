"""Invariants: a newer metric folded into the query equals codes whitened anew; what is the same does not drift."""

import pytest
import torch

from lorif_core.curvature.metric import drift, grown, layer_metric
from lorif_core.gradients.whitening import SIDES, Covariances, KroneckerWhitening, inverse_root, root

D1, D2 = 7, 5


def covariances(seed: int, tokens: int = 400, stretch: float = 1.0) -> Covariances:
    """Of random tokens in random directions."""
    generator = torch.Generator().manual_seed(seed)
    found = Covariances(tokens=tokens, examples=tokens // 10)
    for side, size in zip(SIDES, (D1, D2), strict=True):
        x = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64) * stretch
        found.sums[0, side] = x.T @ x
    return found


@pytest.mark.parametrize("stretch", [1.0, 1e-9])
def test_folding_equals_whitening_the_codes_anew(stretch: float) -> None:
    frozen, newer = covariances(0), covariances(1, stretch=stretch)
    generator = torch.Generator().manual_seed(2)
    query, rows = torch.randn(3, D1, D2, generator=generator), torch.randn(20, D1, D2, generator=generator)

    def whitened(raw: torch.Tensor, by: Covariances) -> torch.Tensor:
        left, right = (KroneckerWhitening(by).matrix(0, side)[1] for side in SIDES)
        return left @ raw.double() @ right

    codes = whitened(rows, frozen).flatten(1)
    folded = layer_metric(frozen, newer, 0).fold(whitened(query, frozen).flatten(1).float())
    expected = whitened(query, newer).flatten(1) @ whitened(rows, newer).flatten(1).T
    torch.testing.assert_close(
        folded.double() @ codes.T, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def test_the_same_metric_folds_to_the_query_itself_and_does_not_drift() -> None:
    frozen = covariances(0)
    query = torch.randn(2, D1 * D2)
    torch.testing.assert_close(layer_metric(frozen, frozen, 0).fold(query), query, rtol=1e-5, atol=1e-5)
    found = drift(frozen, frozen, ["a"])
    assert found.mean < 1e-8 and found.worst < 1e-8
    torch.testing.assert_close(
        root(frozen.mean(0, "in")) @ inverse_root(frozen.mean(0, "in")), torch.eye(D1).double()
    )


def test_drift_names_the_layer_that_drifts_most_by_how_much() -> None:
    """Energy that grows by a factor in every direction drifts by its logarithm."""
    frozen, newer = covariances(0), covariances(0)
    for side in SIDES:
        frozen.sums[1, side] = newer.sums[1, side] = covariances(3).sums[0, side]
    newer.sums = {key: sums * (1.5 if key == (1, "in") else 1.0) for key, sums in newer.sums.items()}
    found = drift(frozen, newer, ["first", "second"])
    assert found.layer == "second" and found.worst == pytest.approx(0.4055, rel=1e-3)
    assert found.mean == pytest.approx(0.4055 / 4, rel=1e-3)


def test_new_data_count_by_their_share_of_the_tokens() -> None:
    base, sample = covariances(0, tokens=300), covariances(1, tokens=50)
    mixed = grown(base, 9000, sample, 1000)
    assert (mixed.tokens, mixed.examples) == (10000, 35)
    for side in SIDES:
        torch.testing.assert_close(mixed.mean(0, side), 0.9 * base.mean(0, side) + 0.1 * sample.mean(0, side))
    again = grown(mixed, 10000, sample, 10000)
    torch.testing.assert_close(again.mean(0, "in"), 0.45 * base.mean(0, "in") + 0.55 * sample.mean(0, "in"))
