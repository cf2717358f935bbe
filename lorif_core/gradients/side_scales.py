"""Scales of both sides of layers: the metric of Adam's steps, which costs nothing per token.

Adam moves a weight by -P^-1 g with P = sqrt(v) + eps. So a step on an example changes the loss of a query by
<g_query, P^-1 g_example>, as LESS and Bergson have it. They divide whole gradients, and here none is ever formed.
So P^2 of a layer is approximated by r c^T, with its row sums r and column sums c over the root of its total, as
Adafactor does (Shazeer and Stern 2018). No other product is nearer in the I-divergence. Then, for gradients Q and
G (I x O),

    <Q, P^-1 G> = <C Q R, C G R>,   C = diag(c)^-1/4,  R = diag(r)^-1/4

and G is a sum over tokens of products of two sides, so scaling both sides scales G. A fold multiplies with signs
anyway; these become signs times scales.

Shapes: O outputs and I inputs of a layer, d features of a side.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from lorif_core.errors import UserError
from lorif_core.gradients.projection import SideName
from lorif_core.gradients.whitening import SideKey
from lorif_core.spec import LayerSpec

EPSILON = 0.01  # times the mean of a side, as in the whitening; scales a dead row by ten times the usual


class SideScales:
    """The scales of both sides of all layers.

    Args:
        values: the scales (d,) of every side, float32.
    """

    def __init__(self, values: Mapping[SideKey, np.ndarray]) -> None:
        self.values = values

    @cached_property
    def name(self) -> str:
        """16 hex digits that identify the scales."""
        sha256 = hashlib.sha256()
        for layer, side in sorted(self.values):
            sha256.update(f"/{layer}/{side}/{self._digest(layer, side)}".encode())
        return sha256.hexdigest()[:16]

    def side(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """A digest of a side's scales, and the scales (d,) float32 on the CPU."""
        return self._digest(layer, side), torch.from_numpy(self.values[layer, side].copy())

    def _digest(self, layer: int, side: SideName) -> str:
        return hashlib.sha256(self.values[layer, side].astype("<f4").tobytes()).hexdigest()[:16]


def adam_scales(layers: Sequence[LayerSpec], squares: Iterable[torch.Tensor]) -> SideScales:
    """The scales of layers.

    Args:
        layers: the layers, for the message of an error.
        squares: P^2 (O, I) of each layer; one at a time is in memory.

    Raises:
        UserError: numbers of a layer are not finite.
    """
    values: dict[SideKey, np.ndarray] = {}
    for number, (layer, square_OI) in enumerate(zip(layers, squares, strict=True)):
        rows_O, columns_I = rank_one(square_OI)
        if not bool(torch.isfinite(rows_O).all() & torch.isfinite(columns_I).all()):
            raise UserError(
                f"the optimiser's second moments of the layer {layer.name} are not finite numbers; use its state "
                f"of an earlier step, or leave the layer out with model.exclude"
            )
        values[number, "in"] = side_scale(columns_I).float().cpu().numpy()
        values[number, "out"] = side_scale(rows_O).float().cpu().numpy()
    return SideScales(values)


def rank_one(square_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(O,) and (I,) in float64, whose outer product has the row sums and the column sums of a matrix.

    It equals a matrix of rank one without negative entries.
    """
    rows_O, columns_I = (square_OI.sum(dim=dim, dtype=torch.float64) for dim in (1, 0))
    total = rows_O.sum()
    root = torch.where(total > 0, total, 1.0).sqrt()
    return rows_O / root, columns_I / root


def side_scale(moments_d: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    """(d,): (m^1/2 + epsilon mean(m^1/2))^-1/2 of the moments m of a side; ones for zeros."""
    roots_d = moments_d.sqrt()
    mean = roots_d.mean()
    damped_d = torch.where(mean > 0, roots_d + epsilon * mean, 1.0)
    return damped_d.rsqrt()
