"""Invariant: a projection is determined by (seed, name, shape), and preserves inner products on average."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.projection import ProjectionSet, rademacher_signs
from lorif_core.spec import LayerSpec, ProjectionSpec, folded_sizes, projected_size


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


@pytest.mark.parametrize("kind", ["random", "folded"])
def test_inner_products_are_preserved_on_average(kind: Literal["random", "folded"]) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 64))
    products = []
    for seed in range(400):
        layers = (LayerSpec("l", 64, 64, 16, 16),)
        placements = [(torch.device("cpu"), torch.float64)]
        side = ProjectionSet(layers, ProjectionSpec(kind, factor=4, seed=seed), placements).layers[0].inner
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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_fold_adds_each_coordinate_to_one_bucket_of_equal_size(
    features: int, size: int, dtype: torch.dtype
) -> None:
    size = min(size, features)
    layer = LayerSpec("l", features, features, size, size)
    spec = ProjectionSpec("folded", 1, seed=3)
    side = ProjectionSet((layer,), spec, [(torch.device("cpu"), dtype)]).layers[0].inner
    matrix = side(torch.eye(features).to(dtype)).double()
    assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(matrix.abs().sum(dim=1), torch.ones(features).double())
    assert torch.equal(matrix.abs().argmax(dim=1), torch.arange(features) % size)
    assert torch.equal(side.double()(torch.eye(features).double()), matrix)
    x = torch.randn(2, 3, features, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(side(x).double(), x.double() @ matrix, rtol=1e-5, atol=1e-5)


def test_the_fold_never_changes() -> None:
    """As the stream of random matrices."""
    layer = LayerSpec("transformer.h.0.mlp.c_proj", 12, 4, 4, 4)
    side = ProjectionSet((layer,), ProjectionSpec("folded", 1), [(torch.device("cpu"), torch.float32)]).layers[0]
    assert side.outer.signs is None
    assert side.inner.signs.tolist() == [-1, 1, 1, 1, 1, -1, 1, 1, -1, -1, 1, -1]


@given(st.integers(1, 5000), st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 8)), st.integers(1, 600))
def test_folded_sides_are_about_as_long_as_the_shorter_one(
    inner: int, outer: int, fold: int | None, limit: int
) -> None:
    short, (d1, d2) = min(inner, outer), folded_sizes(inner, outer, fold, None)
    assert folded_sizes(outer, inner, fold, None) == (d2, d1)
    assert min(d1, d2) <= short and max(d1, d2) <= max(inner, outer)
    if fold is None:
        assert 2 / 3 * short <= min(d1, d2) and max(d1, d2) <= 1.5 * short
    capped = folded_sizes(inner, outer, fold, limit)
    assert max(capped) <= limit and capped[0] <= d1 and capped[1] <= d2
