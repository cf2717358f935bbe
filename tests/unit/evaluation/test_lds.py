"""Invariant: LDS is 1 for scores that predict the losses, about 0 for random ones, and lies in its interval."""

import numpy as np
import pytest

from lorif_core.evaluation.lds import Truth, bootstrap, lds, rank_correlation
from lorif_core.evaluation.training_recipe import subset


def linear_world(noise: float, seed: int = 0) -> tuple[np.ndarray, Truth]:
    """Losses that equal minus the sum of the true influences of a subset's examples, plus noise."""
    rng = np.random.default_rng(seed)
    influence = rng.standard_normal((12, 50))
    members = np.zeros((30, 50), dtype=bool)
    for number in range(30):
        members[number, subset(50, 0.5, number)] = True
    losses = -(members @ influence.T)
    return influence, Truth(members, losses + noise * losses.std() * rng.standard_normal(losses.shape))


def test_true_influences_have_lds_one_and_random_ones_about_zero() -> None:
    influence, truth = linear_world(0.0)
    np.testing.assert_allclose(lds(influence.astype(np.float32), truth), 1.0)
    np.testing.assert_allclose(lds(-influence, truth), -1.0)
    assert abs(lds(np.random.default_rng(9).standard_normal(influence.shape), truth).mean()) < 0.15


def test_ties_share_their_rank_and_a_constant_has_correlation_zero() -> None:
    x = np.array([[1.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    y = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    np.testing.assert_allclose(rank_correlation(x, y), [0.9486833, 0.0], rtol=1e-6)


def test_intervals_contain_the_value_and_paired_ones_are_narrower() -> None:
    influence, truth = linear_world(0.5)
    rng = np.random.default_rng(1)
    close = influence + 0.1 * rng.standard_normal(influence.shape)
    intervals, paired = bootstrap({"a": influence, "b": close}, truth, [("a", "b")])
    for name, scores in (("a", influence), ("b", close)):
        interval = intervals[name]
        assert interval.value == pytest.approx(lds(scores, truth).mean())
        assert interval.low < interval.value < interval.high
    difference = paired["a", "b"]
    assert difference.low < difference.value < difference.high
    assert difference.high - difference.low < 0.5 * (intervals["a"].high - intervals["a"].low)


def test_subsets_have_the_right_size_and_depend_on_their_number() -> None:
    subsets = [subset(101, 0.5, number) for number in range(20)]
    assert all(len(set(indices.tolist())) == 50 for indices in subsets)
    assert (subset(101, 0.5, 3) == subsets[3]).all() and len({tuple(indices) for indices in subsets}) == 20
