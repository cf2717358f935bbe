"""Invariants: products equal those with the formed G, and the search for signs is close to the slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.cut import cut_factors, probes, thin_rows
from lorif_core.gradients.whitened_product import LayerRoots, WhitenedProduct, whitened_gradients
from tests.unit.gradients.cut_oracle import oracle_factors

BATCH = 3


def pairs(
    layers: int, tokens: int, d1: int, d2: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, list[LayerRoots]]:
    """Pairs of several layers with a decaying spectrum, and symmetric positive definite roots, in float64."""
    rng = torch.Generator().manual_seed(seed)
    decay = torch.exp(-torch.arange(tokens, dtype=torch.float64) / 4)[None, :, None]
    A, E = (torch.randn(layers * BATCH, tokens, d, generator=rng).double() for d in (d1, d2))
    roots = []
    for _ in range(layers):
        left, right = (torch.randn(d, d, generator=rng).double() for d in (d1, d2))
        roots.append((left @ left.T / d1 + torch.eye(d1), right @ right.T / d2 + torch.eye(d2)))
    return A * decay, E, roots


def formed(A: torch.Tensor, E: torch.Tensor, roots: list[LayerRoots]) -> torch.Tensor:
    """G by the definition, example by example."""
    return torch.stack([roots[n // BATCH][0] @ A[n].T @ E[n] @ roots[n // BATCH][1] for n in range(len(A))])


def decoded(factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    U, V, scales = factors
    return (U * scales[:, :, None]).transpose(1, 2) @ V


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 40),
    st.integers(0, 999),
)  # fmt: skip
def test_products_and_gradients_equal_those_by_definition(
    layers: int, tokens: int, d1: int, d2: int, thin: int, seed: int
) -> None:
    """In every form: whitened tokens, whitened thin rows, G formed before or after its whitening."""
    A, E, roots = pairs(layers, tokens, d1, d2, seed)
    G = formed(A, E, roots)
    product = WhitenedProduct(A, E, roots, thin)
    rng = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(len(A), 2, d, generator=rng).double() for d in (d1, d2))
    scaled = G / product.magnitude[:, :, None]
    size = float(scaled.norm())
    torch.testing.assert_close(product.right(v), v @ scaled.transpose(1, 2), rtol=1e-9, atol=1e-10 * size)
    torch.testing.assert_close(product.left(u), u @ scaled, rtol=1e-9, atol=1e-10 * size)
    torch.testing.assert_close(whitened_gradients(A, E, roots), G, rtol=1e-9, atol=1e-10 * float(G.norm()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 14), st.integers(2, 14), st.integers(1, 5), st.integers(0, 999))
def test_the_code_does_not_depend_on_the_form_of_the_product(
    tokens: int, d1: int, d2: int, rank: int, seed: int
) -> None:
    A, E, roots = pairs(2, tokens, d1, d2, seed)
    rank = min(rank, d1, d2, tokens)
    thin = [cut_factors(WhitenedProduct(A, E, roots, rows), rank, unbiased=True) for rows in (0, 99)]
    torch.testing.assert_close(decoded(thin[0]), decoded(thin[1]), rtol=1e-6, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 14), st.integers(2, 14), st.integers(1, 5), st.integers(0, 999))
def test_unbiased_scales_reproduce_the_energy_of_the_probes(
    tokens: int, d1: int, d2: int, rank: int, seed: int
) -> None:
    """<G, decoded> = |G R|^2 / p, whose mean over random R is |G|^2; the signs do not depend on it."""
    A, E, roots = pairs(1, tokens, d1, d2, seed)
    rank = min(rank, d1, d2)
    product = WhitenedProduct(A, E, roots, thin_rows(rank))
    G = formed(A, E, roots) / product.magnitude[:, :, None]
    plain, scaled = (cut_factors(product, rank, unbiased=unbiased) for unbiased in (False, True))
    block = probes(d2, rank, torch.device("cpu"), torch.float64)
    energy = (G @ block.T).square().sum(dim=(1, 2)) / len(block)
    captured = (G * decoded(plain)).sum(dim=(1, 2))
    uncapped = captured > 1e-2 * energy  # the factor is capped where less is captured
    torch.testing.assert_close((G * decoded(scaled)).sum(dim=(1, 2))[uncapped], energy[uncapped])
    assert all(torch.equal(a, b) for a, b in zip(plain[:2], scaled[:2], strict=True))


def test_the_energy_of_the_probes_is_that_of_the_gradient_on_average() -> None:
    rng = torch.Generator().manual_seed(0)
    G = torch.randn(400, 24, 5, generator=rng) @ torch.randn(400, 5, 64, generator=rng)
    block = probes(64, 8, torch.device("cpu"), torch.float32)
    ratios = (G @ block.T).square().sum(dim=(1, 2)) / len(block) / G.square().sum(dim=(1, 2))
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / 20


@pytest.mark.parametrize("rank", [1, 4, 8, 16])
@pytest.mark.parametrize(("tokens", "d1", "d2"), [(20, 48, 32), (200, 32, 48), (64, 96, 96)])
def test_the_search_captures_most_of_the_energy_of_the_slow_reference(
    rank: int, tokens: int, d1: int, d2: int
) -> None:
    A, E, roots = pairs(2, tokens, d1, d2, rank)
    G = formed(A, E, roots)
    product = WhitenedProduct(A, E, roots, 0)
    fast = decoded(cut_factors(product, rank, unbiased=False)) * product.magnitude[:, :, None]
    left, right = (torch.stack([pair[side] for pair in roots]).repeat_interleave(BATCH, 0) for side in (0, 1))
    U, V, scales = oracle_factors(A @ left, E @ right, rank)
    slow = (U * scales[:, None]) @ V.transpose(1, 2)
    energies = [1 - (G - approximation).square().sum() / G.square().sum() for approximation in (fast, slow)]
    assert energies[0] > 0.75 * energies[1]


@pytest.mark.parametrize("magnitude", [1e-30, 1e-18, 1.0, 1e18])
def test_signs_and_scales_follow_the_magnitude(magnitude: float) -> None:
    A, E, roots = pairs(2, 50, 16, 24, 0)
    narrow = [(left.float(), right.float()) for left, right in roots]
    codes = []
    for factor in (1.0, magnitude):
        product = WhitenedProduct(A.float(), E.float() * factor, narrow, 0)
        U, V, scales = cut_factors(product, 4, unbiased=True)
        codes.append(decoded((U, V, scales * (product.magnitude / factor))))
    torch.testing.assert_close(codes[1], codes[0], rtol=1e-4, atol=1e-4 * float(codes[0].abs().max()))


def test_a_zero_gradient_has_zero_scales_and_one_that_is_not_finite_has_nan() -> None:
    A, E, roots = pairs(1, 20, 8, 12, 0)
    E[0], E[1, 3, 4] = 0.0, torch.inf
    product = WhitenedProduct(A, E, roots, 0)
    U, V, scales = cut_factors(product, 3, unbiased=True)
    assert torch.isfinite(U).all() and torch.isfinite(V).all()
    total = scales * product.magnitude
    assert not total[0].any() and torch.isnan(total[1]).all() and (total[2] > 0).all()


def test_equal_terms_and_gradients_of_a_lower_rank_are_exact() -> None:
    """A gradient that is one sign matrix has this code, whatever the rank of the code."""
    left, right = (
        torch.where(torch.randn(d, generator=torch.Generator().manual_seed(d)) < 0, -1.0, 1.0) for d in (16, 24)
    )
    product = WhitenedProduct(left[None, None].double(), 3 * right[None, None].double(), None, 0)
    exact = 3 * left.double()[:, None] * right.double()[None]
    code = decoded(cut_factors(product, 5, unbiased=False))[0] * product.magnitude[0]
    assert (code - exact).norm() <= 1e-3 * exact.norm()
