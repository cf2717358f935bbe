"""A newer metric for codes in an older one: covariances that grow with the data, and how far they have drifted.

Codes are whitened with the covariances that an index was calibrated on, A_w and S_w, and stay as they are. The
metric of newer ones, A and S, reaches them from the query's side alone (DESIGN section 3): of a whitened query Q,

    W = (A_w^1/2 A^-1 A_w^1/2) Q (S_w^1/2 S^-1 S_w^1/2)

scores whitened codes as A^-1/2 and S^-1/2 on both would score raw gradients. All with the eps of the whitening.

Shapes: Q queries, D = d1 d2 of a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lorif_core.curvature.woodbury import LayerCurvature, identity_curvature
from lorif_core.gradients.whitening import SIDES, Covariances, inverse_root, root
from lorif_core.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class LayerMetric:
    """What a layer's whitened queries are multiplied by: (d1, d1) from the left and (d2, d2) from the right."""

    left: torch.Tensor
    right: torch.Tensor

    def fold(self, queries_QD: torch.Tensor) -> torch.Tensor:
        """Queries in the newer metric, float32 (Q, D)."""
        shaped = queries_QD.view(-1, len(self.left), len(self.right)).double()
        return (self.left @ shaped @ self.right).reshape(queries_QD.shape).float()


@dataclass(frozen=True, slots=True)
class Drift:
    """How far covariances are from those that the codes were whitened with.

    Of one side of a layer: the mean over the eigen-directions of A_w^-1/2 A A_w^-1/2 of |log eigenvalue|; 0.1 says
    that a typical direction has a tenth more or less energy. `mean` is that over all sides, `worst` the largest.
    """

    mean: float
    worst: float
    layer: str


def layer_metric(frozen: Covariances, newer: Covariances, layer: int) -> LayerMetric:
    """The metric of the newer covariances, for codes in the frozen one."""
    left, right = (_between(frozen.mean(layer, side), newer.mean(layer, side)) for side in SIDES)
    return LayerMetric(left, right)


def metric_folds(
    frozen: Covariances | None, newer: Covariances | None, layers: Sequence[LayerSpec]
) -> Iterator[LayerCurvature | LayerMetric]:
    """What queries are folded with without a curvature: a metric of newer covariances, or the identity."""
    if frozen is None or newer is None:
        yield from (identity_curvature(layer.dim) for layer in layers)
    else:
        yield from (layer_metric(frozen, newer, number) for number in range(len(layers)))


def translation(newer: Covariances, older: Covariances, layer: int) -> LayerMetric:
    """For codes in an older whitening: folded queries in the whitening of `newer`, as they meet those codes.

    <W, A_n^-1/2 G S_n^-1/2> = <A_o^1/2 A_n^-1/2 W S_n^-1/2 S_o^1/2, A_o^-1/2 G S_o^-1/2> for any gradient G.
    """
    left, right = (root(older.mean(layer, side)) @ inverse_root(newer.mean(layer, side)) for side in SIDES)
    return LayerMetric(left, right.T)


def drift(frozen: Covariances, newer: Covariances, names: Sequence[str]) -> Drift:
    """The drift of all layers, by their names."""
    by_side: list[tuple[float, str]] = []
    for number, name in enumerate(names):
        metric = layer_metric(frozen, newer, number)
        for matrix in (metric.left, metric.right):
            by_side.append((float(torch.linalg.eigvalsh(matrix).log().abs().mean()), name))
    worst, layer = max(by_side)
    return Drift(sum(distance for distance, _ in by_side) / len(by_side), worst, layer)


def grown(base: Covariances, base_tokens: int, sample: Covariances, tokens: int) -> Covariances:
    """Covariances of a corpus that has grown: `base_tokens` tokens like the base's, `tokens` like the sample's."""
    mixed = Covariances(tokens=base_tokens + tokens, examples=base.examples + sample.examples)
    for layer, side in base.sums:
        mixed.sums[layer, side] = base.mean(layer, side) * base_tokens + sample.mean(layer, side) * tokens
    return mixed


def _between(frozen: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """C_w^1/2 C^-1 C_w^1/2, float64, symmetric and positive definite."""
    half = inverse_root(newer) @ root(frozen)
    return half.T @ half
