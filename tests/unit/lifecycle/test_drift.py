"""Invariant: codes alone give an estimate of the cosine of old and new gradients; without drift it is 1."""

import pytest
import torch

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, pack
from lorif_core.lifecycle.drift import CheckpointDrift, DriftSink
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 32, 48, 16, 24), LayerSpec("b", 48, 32, 24, 16))
ROWS, TOKENS = 64, 12
CODES = {
    "dense float32": CodeSpec("dense", 1, "float32"),
    "rank 1 float16": CodeSpec("rank", 1, "float16"),
    "rank 2 int4": CodeSpec("rank", 2, "int4"),
    "dense sign": CodeSpec("dense", 1, "sign"),
    "cut 3": CodeSpec("cut", 3, "sign"),
}

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def pairs(drift: float) -> Pairs:
    """(A, E) of every layer: a constant part that all drifts share, and noise that grows with the drift."""
    base, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)

    def side(size: int) -> torch.Tensor:
        constant = torch.randn(ROWS, TOKENS, size, generator=base)
        return constant + drift * torch.randn(constant.shape, generator=noise)

    return [(side(layer.d1), side(layer.d2)) for layer in LAYERS]


def stored(layout: CodeLayout, layers: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales as an index stores them."""
    encoded = [encode(A, E, layout.code, unbiased=True) for A, E in layers]
    codes = [layer.codes for layer in encoded]
    if layout.code.dtype in LEVELS_PER_BYTE:
        codes = [pack(levels, layout.code.dtype) for levels in codes]
    elif layout.code.dtype == "float16":
        codes = [levels.half() for levels in codes]
    return torch.cat(codes, dim=1), torch.cat([layer.scales for layer in encoded], dim=1)


def true_cosines(before: Pairs, after: Pairs) -> torch.Tensor:
    flat = [torch.cat([(A.mT @ E).flatten(1) for A, E in layers], dim=1).double() for layers in (before, after)]
    return torch.nn.functional.cosine_similarity(*flat, dim=1)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("drift", [0.0, 0.1, 0.4])
def test_the_cosine_is_estimated_from_codes(name: str, drift: float) -> None:
    layout = CodeLayout(LAYERS, CODES[name])
    before, after = pairs(0.0), pairs(drift)
    sink = DriftSink(layout, unbiased=True)
    sink.start(*stored(layout, before))
    for number, (A, E) in enumerate(after):
        sink.take(number, A, E)
    estimated, true = sink.cosines(), true_cosines(before, after)
    if drift == 0.0:
        torch.testing.assert_close(estimated, torch.ones(ROWS).double(), rtol=0, atol=1e-3)
    elif name == "dense float32":
        torch.testing.assert_close(estimated, true, rtol=1e-4, atol=1e-5)
    assert abs(float(estimated.mean() - true.mean())) < 0.05
    assert 0.4 < float(true.mean()) < 1.001


def test_samples_add_up() -> None:
    total = CheckpointDrift(10, 9.0, 2, 1.5) + CheckpointDrift(30, 24.0, 0, 0.0)
    assert total.cosine == pytest.approx(33 / 40) and total.correlation == pytest.approx(0.75)
    assert CheckpointDrift(3, 1.0).correlation is None
