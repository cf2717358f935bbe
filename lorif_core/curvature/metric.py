"""The metric of newer covariances for codes in an older whitening, and the drift between the two.

Codes are whitened with the covariances A_w and S_w of the calibration and are never rewritten. The metric of newer
covariances A and S is applied to the query alone (DESIGN section 3). For a whitened query Q,

    W = (A_w^1/2 A^-1 A_w^1/2) Q (S_w^1/2 S^-1 S_w^1/2)

gives the scores that whitening queries and rows by A^-1/2 and S^-1/2 would give. All inverse roots are the stored
ones. The eps of the whitening keeps them far from singular, so A_w^1/2 is computed as the inverse of A_w^-1/2.

Shapes: Q queries, D = d1 d2 of a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lorif_core.curvature.woodbury import LayerCurvature, identity_curvature
from lorif_core.gradients.projection import SideName
from lorif_core.gradients.roots import Roots
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


def layer_metric(frozen: Roots, newer: Roots, layer: int) -> LayerMetric:
    """The metric of the newer covariances, for codes whitened with the frozen ones."""
    factors = (_relative_root(newer, frozen, layer, side) for side in SIDES)
    left, right = (factor.T @ factor for factor in factors)
    return LayerMetric(left, right)


def metric_folds(
    frozen: Roots | None, newer: Roots | None, layers: Sequence[LayerSpec]
) -> Iterator[LayerCurvature | LayerMetric]:
    """Per layer the fold of queries without a curvature: the metric of newer covariances, or the identity."""
    if frozen is None or newer is None:
        yield from (identity_curvature(layer.dim) for layer in layers)
    else:
        yield from (layer_metric(frozen, newer, number) for number in range(len(layers)))


def translation(newer: Roots, older: Roots, layer: int) -> LayerMetric:
    """The factors that bring folded queries W from the whitening of `newer` into that of `older` codes.

    For any gradient G: <W, A_n^-1/2 G S_n^-1/2> = <A_o^1/2 A_n^-1/2 W S_n^-1/2 S_o^1/2, A_o^-1/2 G S_o^-1/2>.
    """
    left, right = (_relative_root(newer, older, layer, side) for side in SIDES)
    return LayerMetric(left.T, right)


def side_drift(frozen: Roots, newer: Roots, layer: int, side: SideName) -> float:
    """The distance of one side, as in `Drift`."""
    factor = _relative_root(newer, frozen, layer, side)
    return float(torch.linalg.eigvalsh(factor.T @ factor).log().abs().mean())


def drift(distances: Sequence[float], names: Sequence[str]) -> Drift:
    """The drift over all sides, from the distance of each and the name of its layer."""
    worst, layer = max(zip(distances, names, strict=True))
    return Drift(sum(distances) / len(distances), worst, layer)


def mixed_mean(base_dd: torch.Tensor, base_tokens: int, sample_dd: torch.Tensor, tokens: int) -> torch.Tensor:
    """Mean covariance of a corpus of `base_tokens` tokens as in `base` and `tokens` tokens as in `sample`."""
    share = tokens / (base_tokens + tokens)
    return (1 - share) * base_dd + share * sample_dd


def _relative_root(newer: Roots, older: Roots, layer: int, side: SideName) -> torch.Tensor:
    """C_n^-1/2 C_o^1/2, float64."""
    (_, inverse), (_, older_inverse) = newer.matrix(layer, side), older.matrix(layer, side)
    return torch.linalg.solve(older_inverse, inverse).T  # both are symmetric
