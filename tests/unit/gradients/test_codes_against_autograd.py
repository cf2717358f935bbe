"""Invariant: codes equal those of per-example weight gradients taken by autograd in float64.

If this breaks, every score is wrong in a way that no other test would detect: wrong transposes, leaking padding,
or a projection that differs between query and corpus.
"""

import copy

import numpy as np
import pytest
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.low_rank import power_rounds
from lorif_core.gradients.projection import ProjectionSet, counter_generator
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.models import (
    FAMILIES,
    autograd_gradients,
    batch_of,
    loaded,
    make_example,
    random_examples,
    scaled,
    tracked,
)

PROJECTION = ProjectionSpec(factor=2, seed=7)


def projected(gradient: torch.Tensor, layer: LayerSpec, projection: ProjectionSpec, layers: tuple) -> np.ndarray:
    """P_in^T (dL/dW) P_out in float64."""
    placements = [(torch.device("cpu"), torch.float64)] * len(layers)
    sides = ProjectionSet(layers, projection, placements).layers[layers.index(layer)]
    left = sides.inner(torch.eye(layer.in_features, dtype=torch.float64))
    right = sides.outer(torch.eye(layer.out_features, dtype=torch.float64))
    return (left.T @ gradient @ right).numpy()


def low_rank_reference(G: np.ndarray, rank: int) -> np.ndarray:
    """U V^T by explicit block power iteration on the smaller side, then the leading Ritz vectors."""
    if G.shape[0] > G.shape[1]:
        return low_rank_reference(G.T, rank).T
    size = G.shape[0]
    normal = counter_generator(0, f"start/{size}x{rank}").standard_normal((size, min(size, rank + 1)))
    block = np.linalg.qr(normal)[0]
    for _ in range(power_rounds(rank)):
        block = np.linalg.qr(G @ (G.T @ block))[0]
    left, _, _ = np.linalg.svd(block.T @ G, full_matrices=False)
    basis = block @ left[:, :rank]
    return basis @ (basis.T @ G)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "code",
    [CodeSpec("rank", 1, "float32"), CodeSpec("rank", 3, "float32"), CodeSpec("dense", 1, "float32")],
    ids=lambda c: f"{c.kind}{c.rank}",
)
def test_codes_equal_autograd_float64(family: str, code: CodeSpec) -> None:
    model = scaled(FAMILIES[family]())
    reference = copy.deepcopy(model).double()
    subject = loaded(model)
    layers = tracked(subject, PROJECTION.factor)
    examples = random_examples(4, seed=1)
    extractor = Extractor(subject, layers, PROJECTION, code)
    result = extractor.extract(batch_of(examples))
    assert result.faults == [None] * len(examples)
    codes, scales = torch.from_numpy(result.codes), torch.from_numpy(result.scales)
    for b, example in enumerate(examples):
        for index, (layer, gradient) in enumerate(
            zip(layers, autograd_gradients(reference, layers, example), strict=True)
        ):
            G = projected(gradient, layer, PROJECTION, layers)
            expected = G if code.kind == "dense" else low_rank_reference(G, min(code.rank, layer.d1, layer.d2))
            decoded = extractor.layout.decode(codes, scales, index)[b].view(layer.d1, layer.d2).numpy()
            assert relative_error(decoded, expected) <= 1e-5, (family, layer.name, example.example_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_codes_are_close_to_those_of_the_same_weights_in_float64(family: str) -> None:
    model = scaled(FAMILIES[family]()).to(torch.bfloat16)
    reference = copy.deepcopy(model).double()
    subject = loaded(model, torch.bfloat16)
    layers = tracked(subject, 2)
    code = CodeSpec("dense", 1, "float32")
    examples = random_examples(3, seed=2)
    extractor = Extractor(subject, layers, PROJECTION, code)
    result = extractor.extract(batch_of(examples))
    actual, expected = [], []
    for b, example in enumerate(examples):
        gradients = autograd_gradients(reference, layers, example)
        for index, layer in enumerate(layers):
            decoded = extractor.layout.decode(
                torch.from_numpy(result.codes), torch.from_numpy(result.scales), index
            )
            actual.append(decoded[b].numpy())
            expected.append(projected(gradients[index], layer, PROJECTION, layers).ravel())
    correlation = np.corrcoef(np.concatenate(actual), np.concatenate(expected))[0, 1]
    assert correlation > 0.98


def test_factor_one_is_the_plain_gradient() -> None:
    model = scaled(FAMILIES["gpt2"]())
    reference = copy.deepcopy(model).double()
    subject = loaded(model)
    layers = tracked(subject, 1)
    examples = random_examples(2, seed=3)
    extractor = Extractor(subject, layers, ProjectionSpec(factor=1), CodeSpec("dense", 1, "float32"))
    _, gradients = extractor.gradients(batch_of(examples))
    for b, example in enumerate(examples):
        for gradient, expected in zip(gradients, autograd_gradients(reference, layers, example), strict=True):
            assert relative_error(gradient[b].numpy(), expected.numpy().ravel()) <= 1e-5


def test_an_example_of_masked_tokens_has_a_code_of_zeros() -> None:
    subject = loaded(scaled(FAMILIES["llama"]()))
    layers = tracked(subject, 2)
    extractor = Extractor(subject, layers, PROJECTION, CodeSpec("rank", 1, "float32"))
    masked = make_example([1, 2, 3, 4], [-100, -100, -100, -100])
    result = extractor.extract(batch_of([masked, make_example([5, 6, 7])]))
    assert not result.codes[0].any() and not result.scales[0].any() and result.losses[0] == 0.0
    assert result.faults[0] is not None and result.faults[1] is None


def test_a_module_used_twice_sums_both_uses() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(6, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    from lorif_core.gradients.capture import CodeSink, GradientCapture

    torch.manual_seed(0)
    net = Twice().double()
    x, target = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    layers = (LayerSpec("layer", 6, 6, 6, 6),)
    layout = CodeLayout(layers, CodeSpec("dense", 1, "float32"))
    sides = ProjectionSet(layers, ProjectionSpec(factor=1), [(torch.device("cpu"), torch.float64)])
    expected = []
    for b in range(3):
        (gradient,) = torch.autograd.grad((net(x[b : b + 1]) - target[b]).square().sum(), [net.layer.weight])
        expected.append(gradient.T.flatten())
    net.requires_grad_(False)
    sink = CodeSink(layout, unbiased=False)
    sink.start(3, torch.device("cpu"), torch.float64)
    with GradientCapture(layers, [[net.layer]], sides, sink.take) as capture:
        capture.start(3, 5)
        (net(x) - target).square().sum().backward()
        capture.finish()
    codes, scales = sink.codes()
    torch.testing.assert_close(layout.decode(codes, scales, 0), torch.stack(expected))
