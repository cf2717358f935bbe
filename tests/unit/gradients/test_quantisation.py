"""Invariants: levels are numbers that their dtype allows, packing is lossless, and the scale fits best."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, pack, packed_bytes, quantise, unpack
from lorif_core.spec import CodeDtype, CodeKind, CodeSpec, LayerSpec

ALLOWED: dict[str, list[int]] = {"int8": list(range(-127, 128)), "int4": list(range(-7, 8)), "sign": [-1, 1]}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(LEVELS_PER_BYTE)), st.integers(1, 40), st.integers(0, 99))
def test_packing_is_lossless(dtype: str, count: int, seed: int) -> None:
    levels = np.random.default_rng(seed).choice(ALLOWED[dtype], (5, count)).astype(np.float32)
    packed = pack(torch.from_numpy(levels), dtype)
    assert packed.dtype == torch.uint8 and packed.shape == (5, packed_bytes(count, dtype))
    np.testing.assert_array_equal(unpack(packed, dtype, count).numpy(), levels)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "int4", "sign"]),
    st.integers(1, 30),
    st.integers(0, 99),
    st.sampled_from([1e-26, 1.0, 1e20]),
)
def test_the_scale_is_that_of_least_squares(dtype: str, count: int, seed: int, magnitude: float) -> None:
    x = torch.randn(3, count, 2, generator=torch.Generator().manual_seed(seed)) * magnitude
    levels, scales = quantise(x, dtype)
    assert set(levels.unique().tolist()) <= set(map(float, ALLOWED[dtype])) and (scales >= 0).all()
    unit = (x / magnitude).double()
    best = (unit * levels).sum(dim=1) / levels.double().square().sum(dim=1)
    torch.testing.assert_close(scales.double() / magnitude, best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.01), ("int4", 0.13), ("sign", 0.62)])
def test_the_error_is_as_small_as_the_levels_allow(dtype: str, error: float) -> None:
    """For normal numbers a step is 1/127 or 1/7 of about three times the RMS; signs retain 2/pi of the energy."""
    x = torch.randn(20, 500, 1, generator=torch.Generator().manual_seed(0))
    levels, scales = quantise(x, dtype)
    assert (levels * scales[:, None] - x).norm() / x.norm() < error


KINDS: list[tuple[CodeKind, CodeDtype]] = [
    *(("rank", dtype) for dtype in ("float32", "float16", "int8", "int4", "sign")),
    *(("dense", dtype) for dtype in ("float32", "float16", "int8", "int4", "sign")),
    ("cut", "sign"),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_stored_codes_decode_to_the_encoded_gradients(kind: CodeKind, dtype: CodeDtype, rank: int) -> None:
    code = CodeSpec(kind, rank, dtype)
    layers = [LayerSpec("a", 9, 13, 9, 13), LayerSpec("b", 5, 7, 5, 7)]
    layout = CodeLayout(layers, code)
    rng = torch.Generator().manual_seed(1)
    parts = [
        encode(torch.randn(4, 6, layer.d1, generator=rng), torch.randn(4, 6, layer.d2, generator=rng), code)
        for layer in layers
    ]
    codes = torch.cat([part.codes for part in parts], dim=1)
    scales = torch.cat([part.scales for part in parts], dim=1)
    assert codes.shape == (4, layout.width) and scales.shape == (4, layout.scales)
    if dtype in LEVELS_PER_BYTE:
        stored = torch.cat([pack(codes[:, slot.start : slot.stop], dtype) for slot in layout.slots], dim=1)
        assert stored.shape == (4, layout.stored_width)
    else:
        stored = codes.to({"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}[dtype])
    for index in range(2):
        decoded, expected = layout.decode(stored, scales, index), layout.decode(codes, scales, index)
        torch.testing.assert_close(decoded, expected, rtol=2e-3, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_cut_factors_fit_better_than_the_signs_of_factors(d1: int, d2: int, rank: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    A, E = torch.randn(3, 5, d1, generator=rng), torch.randn(3, 5, d2, generator=rng)
    G = A.transpose(1, 2) @ E
    residuals = {}
    for kind in ("rank", "cut"):
        code = CodeSpec(kind, min(rank, d1, d2), "sign")
        encoded = encode(A, E, code)
        layout = CodeLayout([LayerSpec("l", d1, d2, d1, d2)], code)
        residuals[kind] = (G - layout.decode(encoded.codes, encoded.scales, 0).view(3, d1, d2)).norm(dim=(1, 2))
        assert (encoded.scales >= 0).all()
    norms = G.norm(dim=(1, 2))
    assert (residuals["cut"] <= residuals["rank"] + 1e-4 * norms).all() and (residuals["cut"] < norms).all()
