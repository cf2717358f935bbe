"""Invariants: products of scaled gradients are influences in the metric of Adam with moments of rank one, for all
kinds of layers; with a whitening on top, the metric is that of K-FAC with Adam's as its damping.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.errors import UserError
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.roots import EPSILON as WHITENING_EPSILON
from lorif_core.gradients.roots import exact_roots, inverse_root
from lorif_core.gradients.self_check import check_capture
from lorif_core.gradients.side_scales import EPSILON, SideScales, adam_scales, rank_one, side_scale
from lorif_core.model.layers import folded_layer_specs, layer_specs, out_by_in, select_layers, tracked_module
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.mixtures import MIXTURES
from tests.models import autograd_gradients, batch_of, gpt2, in_by_out, llama, loaded, random_examples, scaled

ADAM = ProjectionSpec("folded-adam", 1, seed=5)
BOTH = ProjectionSpec("folded-adam-whitened", 1, seed=5)
DENSE = CodeSpec("dense", 1, "float32")
EXAMPLES = random_examples(6, seed=2)
FAMILIES: dict[str, Callable[[], Any]] = {
    "Conv1D": lambda: scaled(gpt2()),
    "Linear": lambda: scaled(llama()),
    "experts": MIXTURES["olmoe"],
    "transposed experts": MIXTURES["gpt_oss"],
}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1e-30, 1e-9, 1.0]))
def test_the_product_is_exact_for_moments_of_rank_one(
    rows: int, columns: int, seed: int, magnitude: float
) -> None:
    rng = np.random.default_rng(seed)
    sides = [torch.from_numpy(rng.random(size) * (rng.random(size) < 0.8)) for size in (rows, columns)]
    moments = torch.outer(*sides) * magnitude
    r, c = rank_one(moments)
    torch.testing.assert_close(torch.outer(r, c), moments, rtol=1e-12, atol=0.0)
    scale = torch.outer(side_scale(r, 0.0), side_scale(c, 0.0))
    alive = moments > 0
    torch.testing.assert_close(scale[alive] ** -4, moments[alive], rtol=1e-9, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_product_has_the_sums_of_the_moments_and_is_the_nearest(rows: int, columns: int, seed: int) -> None:
    """The I-divergence of any other product is larger."""
    rng = np.random.default_rng(seed)
    moments = torch.from_numpy(rng.random((rows, columns)) + 1e-3)
    r, c = rank_one(moments)
    product = torch.outer(r, c)
    for dim in (0, 1):
        torch.testing.assert_close(product.sum(dim), moments.sum(dim))

    def divergence(other: torch.Tensor) -> float:
        return float((moments * (moments / other).log() - moments + other).sum())

    for _ in range(3):
        moved = [side * torch.from_numpy(np.exp(0.1 * rng.standard_normal(len(side)))) for side in (r, c)]
        assert divergence(torch.outer(*moved)) >= divergence(product) - 1e-12


def test_a_dead_row_is_scaled_by_ten_times_the_usual_at_most() -> None:
    moments = torch.rand(40, 30, dtype=torch.float64) + 0.5
    moments[3] = moments[:, 7] = 0.0
    moments[5] *= 1e-30
    r, c = rank_one(moments)
    for scale in (side_scale(r), side_scale(c)):
        assert torch.isfinite(scale).all() and float(scale.max() / scale.median()) < 11
    assert torch.equal(side_scale(torch.zeros(4)), torch.ones(4)), "a layer without moments is as it is"


def layers_of(model: LoadedModel, *, fold: bool) -> tuple[LayerSpec, ...]:
    layers = select_layers(model.model)
    return folded_layer_specs(layers) if fold else layer_specs(layers, 1)


def moments_of(model: LoadedModel, layers: tuple[LayerSpec, ...]) -> list[torch.Tensor]:
    """Random second moments in the shapes of the weights; a row and a column are much larger than the others."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for layer in layers:
        shape = tracked_module(model.model, layer.name).weight.shape
        moments = torch.rand(shape, generator=generator, dtype=torch.float64) ** 4 * 1e-6
        moments[..., 0] *= 50
        moments[..., 1, :] *= 90
        found.append(moments)
    return found


def scales_of(model: LoadedModel, layers: tuple[LayerSpec, ...]) -> SideScales:
    modules = [tracked_module(model.model, layer.name) for layer in layers]
    return adam_scales(layers, map(out_by_in, modules, moments_of(model, layers)))


def reference_scales(model: LoadedModel, layers: tuple[LayerSpec, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per layer the scales of inputs and outputs, by the formula."""
    found = []
    for layer, moments in zip(layers, moments_of(model, layers), strict=True):
        P2 = in_by_out(tracked_module(model.model, layer.name), moments).numpy()
        sides = []
        for axis in (1, 0):
            root = np.sqrt(P2.sum(axis) / np.sqrt(P2.sum()))
            sides.append((root + EPSILON * root.mean()) ** -0.5)
        found.append((sides[0], sides[1]))
    return found


def decoded(extractor: Extractor) -> list[torch.Tensor]:
    """Per layer the gradients (B, d1, d2) of the examples, as queries have them."""
    _, gradients = extractor.gradients(batch_of(EXAMPLES))
    slots = extractor.layout.slots
    return [
        gradient.view(-1, slot.layer.d1, slot.layer.d2).double()
        for gradient, slot in zip(gradients, slots, strict=True)
    ]


def double(make: Callable[[], Any]) -> LoadedModel:
    return loaded(make().double(), torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_influences_in_the_metric_of_adam(family: str) -> None:
    """Against gradients of autograd in float64; codes are float32, which rounds by 1e-7, within 1e-5."""
    model = double(FAMILIES[family])
    layers = layers_of(model, fold=False)
    found = decoded(Extractor(model, layers, ADAM, DENSE, scales=scales_of(model, layers)))
    expected = [
        torch.stack(of_layer)
        for of_layer in zip(
            *(autograd_gradients(model.model, layers, example) for example in EXAMPLES), strict=True
        )
    ]
    for G, dense, (c, r) in zip(found, expected, reference_scales(model, layers), strict=True):
        metric = torch.from_numpy(np.outer(c**2, r**2))  # P^-1 with the damping
        influences = torch.einsum("qio,xio->qx", dense * metric, dense)
        products = torch.einsum("qio,xio->qx", G, G)
        assert (products - influences).abs().max() <= 1e-5 * influences.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fold_adds_scaled_coordinates(family: str) -> None:
    model = double(FAMILIES[family])
    layers = layers_of(model, fold=True)
    scales = scales_of(model, layers)
    model_of = partial(CapturedModel, model, layers, replace(ADAM, kind="folded"), lambda *_: None)
    check_capture(model_of(scales=scales))
    if "experts" in family:
        return  # their wide side is no `Side`; the self-check has compared them with autograd
    found = decoded(Extractor(model, layers, ADAM, DENSE, scales=scales))
    placements = [(torch.device("cpu"), torch.float64)] * len(layers)
    sides = ProjectionSet(layers, ADAM, placements).layers
    for row, example in enumerate(EXAMPLES):
        gradients = autograd_gradients(model.model, layers, example)
        for index, (gradient, (c, r)) in enumerate(zip(gradients, reference_scales(model, layers), strict=True)):
            G = gradient * torch.from_numpy(np.outer(c, r))
            expected = sides[index].outer(sides[index].inner(G.T).T)
            assert (found[index][row] - expected).norm() <= 1e-5 * expected.norm()


def test_with_a_whitening_on_top_the_metric_of_adam_is_its_damping() -> None:
    """D (D A D + e I)^-1 D = (A + e D^-2)^-1: K-FAC damped by Adam's divisor instead of by the identity."""
    model = double(FAMILIES["Conv1D"])
    layers = layers_of(model, fold=False)
    scales = scales_of(model, layers)
    calibrator = Calibrator(model, layers, BOTH, scales)
    calibrator.add(batch_of(EXAMPLES))
    covariances = calibrator.covariances
    found = decoded(Extractor(model, layers, BOTH, DENSE, exact_roots(covariances), scales))
    plain = Calibrator(model, layers, ProjectionSpec("folded-whitened", 1, seed=5))
    plain.add(batch_of(EXAMPLES))
    for index, (c, r) in enumerate(reference_scales(model, layers)):
        inverses = []
        for side, scale in (("in", c), ("out", r)):
            damping = WHITENING_EPSILON * covariances.mean(index, side).diagonal().mean()  # type: ignore[arg-type]
            unscaled = plain.covariances.mean(index, side)  # type: ignore[arg-type]
            inverses.append(torch.linalg.inv(unscaled + damping * torch.from_numpy(np.diag(scale**-2))))
        dense = torch.stack([autograd_gradients(model.model, layers, e)[index] for e in EXAMPLES])
        influences = torch.einsum("qio,xio->qx", inverses[0] @ dense @ inverses[1], dense)
        products = torch.einsum("qio,xio->qx", found[index], found[index])
        assert (products - influences).abs().max() <= 1e-4 * influences.abs().max()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_an_exact_whitening_undoes_any_scale_and_a_weak_one_leaves_it(seed: int) -> None:
    """The limits of both: without damping scores are those of the whitening, with much of it those of Adam."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((40, 6)))
    scale = torch.from_numpy(rng.uniform(0.1, 10, 6))
    covariance, D = x.T @ x, torch.diag(scale)

    def metric(scale_dd: torch.Tensor, epsilon: float) -> torch.Tensor:
        root = inverse_root(scale_dd @ covariance @ scale_dd, epsilon) @ scale_dd
        return root.T @ root

    exact = metric(torch.eye(6, dtype=torch.float64), 1e-12)
    torch.testing.assert_close(metric(D, 1e-12), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
    weak = metric(D, 1e6)
    expected = torch.diag(scale**2)
    torch.testing.assert_close(weak / weak.trace(), expected / expected.trace(), rtol=1e-3, atol=1e-5)


def test_moments_that_are_not_finite_are_refused() -> None:
    layers = (LayerSpec("block.mlp", 3, 2, 3, 2),)
    with pytest.raises(UserError, match=r"second moments of the layer block.mlp are not finite"):
        adam_scales(layers, [torch.tensor([[1.0, torch.nan, 1.0], [1.0, 1.0, 1.0]])])
