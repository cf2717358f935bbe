"""Invariant: a projection is determined by (seed, name, shape), and preserves inner products on average."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.projection import ProjectionSet, rademacher_signs
from lorif_core.spec import LayerSpec, ProjectionSpec, projected_size


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**63 - 1), st.text(max_size=10))
def test_signs_are_plus_minus_one_and_repeatable(rows: int, cols: int, seed: int, key: str) -> None:
    signs = rademacher_signs(rows, cols, seed, key)
    assert signs.shape == (rows, cols) and set(np.unique(signs)) <= {-1, 1}
    np.testing.assert_array_equal(signs, rademacher_signs(rows, cols, seed, key))


def test_the_stream_never_changes() -> None:
    """The values are frozen: another stream would silently make the scores of every existing index wrong."""
    signs = rademacher_signs(2, 8, 0, "in/transformer.h.0.attn/768x192")
    assert signs.tolist() == [[1, -1, -1, 1, 1, 1, 1, -1], [1, 1, -1, -1, -1, -1, 1, 1]]


def test_seed_and_key_give_independent_matrices() -> None:
    matrices = [rademacher_signs(400, 100, seed, key).ravel() for seed in (0, 1) for key in ("a", "b")]
    correlations = np.corrcoef(np.stack(matrices).astype(float)) - np.eye(4)
    assert np.abs(correlations).max() < 0.03


def test_inner_products_are_preserved_on_average() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 64))
    products = []
    for seed in range(400):
        layers = (LayerSpec("l", 64, 64, 16, 16),)
        placements = [(torch.device("cpu"), torch.float64)]
        side = ProjectionSet(layers, ProjectionSpec(factor=4, seed=seed), placements).layers[0].inner
        products.append(float(side(torch.from_numpy(x)) @ side(torch.from_numpy(y))))
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - x @ y) < 4 * error


def test_siblings_share_only_the_input_side() -> None:
    layers = tuple(LayerSpec(f"block.{name}", 8, 8, 4, 4) for name in ("q_proj", "k_proj"))
    sides = ProjectionSet(layers, ProjectionSpec(factor=2), [(torch.device("cpu"), torch.float32)] * 2).layers
    assert sides[0].inner is sides[1].inner
    assert not torch.equal(sides[0].outer.matrix, sides[1].outer.matrix)


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_projected_size_is_the_ceiling(features: int, factor: int) -> None:
    size = projected_size(features, factor)
    assert (size - 1) * factor < features <= size * factor
