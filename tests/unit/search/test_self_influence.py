"""Invariant: s(x, x) of a stored row equals < H^-1 g, g > of its decoded code, for any H, code and whitening."""

import numpy as np
import pytest
import torch

from lorif_core.curvature.metric import LayerMetric
from lorif_core.curvature.woodbury import LayerCurvature, identity_curvature
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.quantisation import pack
from lorif_core.search.scoring import fold_queries, own_influence
from lorif_core.search.self_influence import layer_form, self_influences
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 6, 8, 6, 8), LayerSpec("b", 9, 4, 9, 4))
ROWS = 600
CODES = [
    CodeSpec("rank", 1, "float32"), CodeSpec("rank", 3, "float16"), CodeSpec("cut", 2, "sign"),
    CodeSpec("dense", 1, "float32"), CodeSpec("dense", 1, "sign"),
]  # fmt: skip


def stored(code: CodeSpec) -> tuple[CodeLayout, torch.Tensor, torch.Tensor]:
    layout, draw = CodeLayout(LAYERS, code), torch.Generator().manual_seed(0)
    levels, scales = (torch.randn(ROWS, n, generator=draw) for n in (layout.width, layout.scales))
    if code.dtype == "sign":
        packed = [pack(levels[:, slot.start : slot.stop], "sign") for slot in layout.slots]
        return layout, torch.cat(packed, dim=1), scales.abs()
    return layout, levels.to(torch.float16 if code.dtype == "float16" else torch.float32), scales.abs()


def metric(layer: LayerSpec, draw: torch.Generator) -> LayerMetric:
    sides = (torch.randn(size, size, generator=draw, dtype=torch.float64) for size in (layer.d1, layer.d2))
    return LayerMetric(*(side @ side.T for side in sides))


def curvature(layer: LayerSpec, draw: torch.Generator) -> LayerCurvature:
    basis = torch.linalg.qr(torch.randn(layer.dim, 5, generator=draw)).Q
    return LayerCurvature(torch.tensor([900.0, 80, 7, 6, 1]).double(), basis, 1e3, 9, 0.5, 0.7)


FOLDS = {
    "identity": lambda layer, draw: identity_curvature(layer.dim),
    "metric": metric,
    "curvature": curvature,
}


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("kind", FOLDS)
@pytest.mark.parametrize("follows", [False, True])
def test_self_influence_is_the_quadratic_form_of_the_decoded_row(code: CodeSpec, kind: str, follows: bool) -> None:
    """A row that follows another whitening is translated into it; the memory limit does not change results."""
    layout, codes, scales = stored(code)
    draw = torch.Generator().manual_seed(1)
    folds = [FOLDS[kind](layer, draw) for layer in LAYERS]
    translations = [
        LayerMetric(
            torch.randn(layer.d1, layer.d1, generator=draw).double(),
            torch.randn(layer.d2, layer.d2, generator=draw).double(),
        )
        for layer in LAYERS
    ]
    rows = [layout.decode(codes, scales, layer) for layer in range(len(LAYERS))]
    if follows:  # <translation(W), row> = <W, row in the followed whitening>
        rows = [
            (back.left.T @ row.double().view(ROWS, layer.d1, layer.d2) @ back.right.T).reshape(ROWS, -1).float()
            for row, back, layer in zip(rows, translations, LAYERS, strict=True)
        ]
    expected = own_influence(fold_queries(rows, folds), rows).numpy()
    for memory_gb in (1.0, 1e-9):
        forms = (
            layer_form(fold, back if follows else None) for fold, back in zip(folds, translations, strict=True)
        )
        halves = [(codes[:250], scales[:250]), (codes[250:], scales[250:])]
        values = self_influences(halves.copy, layout, forms, memory_gb)
        assert values.dtype == np.float32 and values.shape == (ROWS,)
        np.testing.assert_allclose(values, expected, rtol=1e-4)
