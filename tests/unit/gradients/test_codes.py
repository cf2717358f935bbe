"""Invariant: a code is close to the best low-rank approximation of G, on every code path and at any magnitude of
the gradient.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients import low_rank
from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.spec import CodeSpec, LayerSpec


def decoded(A: torch.Tensor, E: torch.Tensor, code: CodeSpec, dtype: torch.dtype | None = None) -> torch.Tensor:
    layer = LayerSpec("l", A.shape[2], E.shape[2], A.shape[2], E.shape[2])
    encoded = encode(A, E, code)
    codes = encoded.codes if dtype is None else encoded.codes.to(dtype).to(A)
    return CodeLayout([layer], code).decode(codes, encoded.scales, 0).view(len(A), A.shape[2], E.shape[2])


def pairs(batch: int, tokens: int, d1: int, d2: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected pairs with a decaying spectrum, in float64."""
    rng = torch.Generator().manual_seed(seed)
    decay = torch.exp(-torch.arange(tokens, dtype=torch.float64) / 2)[None, :, None]
    A = torch.randn(batch, tokens, d1, generator=rng, dtype=torch.float64) * decay
    return A, torch.randn(batch, tokens, d2, generator=rng, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 10), st.integers(1, 10), st.integers(1, 3), st.integers(0, 99))
def test_a_rank_c_code_is_nearly_the_truncated_svd(tokens: int, d1: int, d2: int, rank: int, seed: int) -> None:
    rank = min(rank, d1, d2)
    A, E = pairs(3, tokens, d1, d2, seed)
    G = A.transpose(1, 2) @ E
    low = decoded(A, E, CodeSpec("rank", rank, "float32"))
    singular = torch.linalg.svdvals(G)
    best = singular[:, :rank].square().sum(dim=1)
    assert (low.square().sum(dim=(1, 2)) >= 0.98 * best).all()
    # U V^T is an orthogonal projection of G, so the residual is orthogonal to it
    torch.testing.assert_close(((G - low) * low).sum(dim=(1, 2)), torch.zeros(3).double(), atol=1e-8, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(2, 12), st.integers(1, 3), st.integers(0, 99))
def test_unbiased_scales_reproduce_the_squared_norm(tokens: int, d1: int, d2: int, rank: int, seed: int) -> None:
    """<G, decoded> = |G|^2 whether |G|^2 is computed from tokens or from G, and the levels do not change."""
    A, E = pairs(3, tokens, d1, d2, seed)
    G = A.transpose(1, 2) @ E
    layer = LayerSpec("l", d1, d2, d1, d2)
    code = CodeSpec("rank", min(rank, d1, d2), "sign")
    plain, scaled = (encode(A, E, code, unbiased=unbiased) for unbiased in (False, True))
    unbiased_G = CodeLayout([layer], code).decode(scaled.codes, scaled.scales, 0).view_as(G)
    captured = (G * CodeLayout([layer], code).decode(plain.codes, plain.scales, 0).view_as(G)).sum(dim=(1, 2))
    energy = G.square().sum(dim=(1, 2))
    uncapped = captured > 1e-2 * energy  # the factor is capped where less is captured
    torch.testing.assert_close((G * unbiased_G).sum(dim=(1, 2))[uncapped], energy[uncapped], rtol=1e-9, atol=0)
    assert torch.equal(plain.codes, scaled.codes)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("d1", "d2"), [(9, 14), (14, 9)])
def test_iterating_on_the_pairs_equals_forming_the_gradient(
    rank: int, d1: int, d2: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, E = pairs(4, 7, d1, d2)
    results = {}
    for implicit in (True, False):
        monkeypatch.setattr(low_rank, "_is_implicit_cheaper", lambda *_, value=implicit: value)
        results[implicit] = decoded(A, E, CodeSpec("rank", rank, "float32"))
    torch.testing.assert_close(results[True], results[False], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("code", [CodeSpec("rank", 1), CodeSpec("rank", 2), CodeSpec("dense")], ids=str)
@pytest.mark.parametrize("magnitude", [1e-26, 1e-18, 1e-6, 1.0, 1e12])
def test_float16_codes_do_not_underflow_or_overflow(code: CodeSpec, magnitude: float) -> None:
    """Gradients of well-learnt examples are tiny; their codes must be as exact as those of others."""
    A, E = (x.float() for x in pairs(5, 6, 8, 12))
    reference = decoded(A, E, code)
    result = decoded(A, E * magnitude, code, torch.float16) / magnitude
    assert (result - reference).norm() <= 2e-3 * reference.norm()


@pytest.mark.parametrize("code", [CodeSpec("rank", 1), CodeSpec("rank", 2), CodeSpec("dense")], ids=str)
def test_a_zero_gradient_is_zero_not_nan(code: CodeSpec) -> None:
    A, E = (x.float() for x in pairs(3, 6, 8, 12))
    E[1] = 0
    encoded = encode(A, E, code)
    assert not encoded.scales[1].any() and torch.isfinite(encoded.codes).all()
    assert encoded.scales[[0, 2]].all()


def test_layout_bytes_are_those_of_levels_and_scales() -> None:
    layers = [LayerSpec("a", 10, 20, 5, 10), LayerSpec("b", 6, 6, 3, 3)]
    layout = CodeLayout(layers, CodeSpec("rank", 2, "float16"))
    assert layout.width == 2 * (5 + 10) + 2 * (3 + 3)
    assert layout.bytes_per_example == 2 * layout.width + 4 * 2 * 2
    assert layout.dense_bytes_per_example() == 2 * (50 + 9) + 4 * 2


def test_ill_conditioned_starts_do_not_amplify_rounding() -> None:
    """Codes in float32 are close to those in float64 even if the two leading singular values are close."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        left, right = (
            np.linalg.qr(rng.standard_normal((12, 12)))[0],
            np.linalg.qr(rng.standard_normal((20, 12)))[0],
        )
        A = torch.from_numpy(left * np.array([1.0, 0.8, *np.linspace(0.5, 0.1, 10)]))[None]
        E = torch.from_numpy(right.T.copy())[None]
        A = A.transpose(1, 2).contiguous()
        exact = decoded(A, E, CodeSpec("rank", 1, "float32"))
        rounded = decoded(A.float(), E.float(), CodeSpec("rank", 1, "float32")).double()
        worst = max(worst, float((rounded - exact).norm() / exact.norm()))
    assert worst <= 1e-5
