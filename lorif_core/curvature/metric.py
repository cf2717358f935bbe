"""The metric of newer covariances for codes in an older whitening, and the drift between the two.

Codes are whitened with the covariances A_w and S_w of the calibration and are never rewritten. The metric of newer
covariances A and S is applied to the query alone (DESIGN section 3). For a whitened query Q,

    W = (A_w^1/2 A^-1 A_w^1/2) Q (S_w^1/2 S^-1 S_w^1/2)

gives the scores that whitening queries and rows by A^-1/2 and S^-1/2 would give. A_w^1/2 is computed as the
inverse of the stored A_w^-1/2, which the eps of the whitening keeps far from singular. Both factors are stored
when the covariances are measured.

Shapes: Q queries, D = d1 d2 of a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.curvature.woodbury import LayerCurvature, identity_curvature
from lorif_core.gradients.projection import SideName
from lorif_core.gradients.roots import SideMatrices
from lorif_core.gradients.symmetric import pack
from lorif_core.gradients.whitening import SIDES
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


def side_metric(frozen: SideMatrices, root: torch.Tensor, layer: int, side: SideName) -> torch.Tensor:
    """C_w^1/2 C^-1 C_w^1/2 (d, d) float64 of one side, from C^-1/2 of the newer covariance, on its device."""
    _, frozen_root = frozen.matrix(layer, side)
    factor = _over(root.double(), frozen_root.to(root.device))
    return factor.T @ factor


def exact_metric(frozen: SideMatrices, newer: SideMatrices) -> SideMatrices:
    """The metric of newer covariances, from their roots, for codes whitened with the frozen ones; in float64."""
    sides = {key: side_metric(frozen, newer.matrix(*key)[1], *key) for key in newer.keys}
    return SideMatrices({key: pack(matrix, np.float64) for key, matrix in sides.items()})


def metric_folds(
    metric: SideMatrices | None, layers: Sequence[LayerSpec]
) -> Iterator[LayerCurvature | LayerMetric]:
    """Per layer the fold of queries without a curvature: the metric of newer covariances, or the identity."""
    for number, layer in enumerate(layers):
        if metric is None:
            yield identity_curvature(layer.dim)
        else:
            left, right = (metric.matrix(number, side)[1] for side in SIDES)
            yield LayerMetric(left, right)


def translation(newer: SideMatrices, older: SideMatrices, layer: int) -> LayerMetric:
    """The factors that bring folded queries W from the whitening of `newer` into that of `older` codes.

    For any gradient G: <W, A_n^-1/2 G S_n^-1/2> = <A_o^1/2 A_n^-1/2 W S_n^-1/2 S_o^1/2, A_o^-1/2 G S_o^-1/2>.
    """
    left, right = (_over(newer.matrix(layer, side)[1], older.matrix(layer, side)[1]) for side in SIDES)
    return LayerMetric(left.T, right)


def side_drift(metric_dd: torch.Tensor) -> float:
    """The distance of one side, as in `Drift`, from its metric."""
    return float(torch.linalg.eigvalsh(metric_dd).log().abs().mean())


def drift(distances: Sequence[float], names: Sequence[str]) -> Drift:
    """The drift over all sides, from the distance of each and the name of its layer."""
    worst, layer = max(zip(distances, names, strict=True))
    return Drift(sum(distances) / len(distances), worst, layer)


def mixed_mean(base_dd: torch.Tensor, base_tokens: int, sample_dd: torch.Tensor, tokens: int) -> torch.Tensor:
    """Mean covariance of a corpus of `base_tokens` tokens as in `base` and `tokens` tokens as in `sample`."""
    share = tokens / (base_tokens + tokens)
    return (1 - share) * base_dd + share * sample_dd


def _over(newer_dd: torch.Tensor, older_dd: torch.Tensor) -> torch.Tensor:
    """C_n^-1/2 C_o^1/2, float64, from the roots C_n^-1/2 and C_o^-1/2, which are symmetric."""
    return torch.linalg.solve(older_dd, newer_dd).T
