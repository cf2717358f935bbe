"""The metric of newer covariances for codes in an older whitening, and the drift between the two.

Codes are whitened with the covariances A_w and S_w of the calibration and are never rewritten. The metric of newer
covariances A and S is applied to the query alone (DESIGN section 3). For a whitened query Q,

    W = (A_w^1/2 A^-1 A_w^1/2) Q (S_w^1/2 S^-1 S_w^1/2)

gives the scores that whitening queries and rows by A^-1/2 and S^-1/2 would give. All roots use the eps of the
whitening.

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
    """Factors of a layer's whitened queries: (d1, d1) from the left and (d2, d2) from the right, float64."""

    left: torch.Tensor
    right: torch.Tensor

    def fold(self, queries_QD: torch.Tensor) -> torch.Tensor:
        """Queries in the newer metric, float32 (Q, D)."""
        shaped = queries_QD.view(-1, len(self.left), len(self.right)).double()
        return (self.left @ shaped @ self.right).reshape(queries_QD.shape).float()


@dataclass(frozen=True, slots=True)
class Drift:
    """Distance of covariances from those that the codes were whitened with.

    The distance of one side of a layer is the mean of |log eigenvalue| over the eigenvalues of
    A_w^-1/2 A A_w^-1/2: 0.1 means that a typical direction has a tenth more or less energy. `mean` is the mean
    distance over all sides, `worst` the largest distance, which is in `layer`.
    """

    mean: float
    worst: float
    layer: str


def layer_metric(frozen: Covariances, newer: Covariances, layer: int) -> LayerMetric:
    """The metric of the newer covariances, for codes whitened with the frozen ones."""
    left, right = (_relative_metric(frozen.mean(layer, side), newer.mean(layer, side)) for side in SIDES)
    return LayerMetric(left, right)


def metric_folds(
    frozen: Covariances | None, newer: Covariances | None, layers: Sequence[LayerSpec]
) -> Iterator[LayerCurvature | LayerMetric]:
    """Per layer the fold of queries without a curvature: the metric of newer covariances, or the identity."""
    if frozen is None or newer is None:
        yield from (identity_curvature(layer.dim) for layer in layers)
    else:
        yield from (layer_metric(frozen, newer, number) for number in range(len(layers)))


def translation(newer: Covariances, older: Covariances, layer: int) -> LayerMetric:
    """The factors that bring folded queries W from the whitening of `newer` into that of `older` codes.

    For any gradient G: <W, A_n^-1/2 G S_n^-1/2> = <A_o^1/2 A_n^-1/2 W S_n^-1/2 S_o^1/2, A_o^-1/2 G S_o^-1/2>.
    """
    left, right = (root(older.mean(layer, side)) @ inverse_root(newer.mean(layer, side)) for side in SIDES)
    return LayerMetric(left, right.T)


def drift(frozen: Covariances, newer: Covariances, names: Sequence[str]) -> Drift:
    """The drift over all layers; `names` are the names of the layers."""
    by_side: list[tuple[float, str]] = []
    for number, name in enumerate(names):
        metric = layer_metric(frozen, newer, number)
        for matrix in (metric.left, metric.right):
            by_side.append((float(torch.linalg.eigvalsh(matrix).log().abs().mean()), name))
    worst, layer = max(by_side)
    return Drift(sum(distance for distance, _ in by_side) / len(by_side), worst, layer)


def mix_covariances(base: Covariances, base_tokens: int, sample: Covariances, tokens: int) -> Covariances:
    """Covariances of a corpus of `base_tokens` tokens as in `base` and `tokens` tokens as in `sample`."""
    mixed = Covariances(tokens=base_tokens + tokens, examples=base.examples + sample.examples)
    for layer, side in base.sums:
        mixed.sums[layer, side] = base.mean(layer, side) * base_tokens + sample.mean(layer, side) * tokens
    return mixed


def _relative_metric(frozen: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """C_w^1/2 C^-1 C_w^1/2, float64, symmetric and positive definite."""
    factor = inverse_root(newer) @ root(frozen)
    return factor.T @ factor
