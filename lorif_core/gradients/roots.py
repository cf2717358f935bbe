"""Whitening of projected gradients, so that their dot product is an influence in the K-FAC metric.

Whitening replaces a projection P by P (C + eps I)^-1/2, with eps relative to the mean eigenvalue of the covariance
C of that side (DESIGN section 3, RESEARCH). The roots are computed once, by the calibration. They are stored with
their covariances, so that rows, queries and updates use the same numbers.

Shapes: N matrices of one size, d the size of a side.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.gradients.projection import SideName
from lorif_core.gradients.symmetric import PackedMatrix, pack
from lorif_core.gradients.whitened_product import LayerRoots
from lorif_core.gradients.whitening import SIDES, Covariances, SideKey

EPSILON = 0.01  # times the mean eigenvalue; quality is flat between .003 and .03 (RESEARCH, recommendation 1)
_BATCH_BYTES = 256 * 2**20  # of the matrices whose eigenvalues are computed together


class SideMatrices:
    """A matrix for every side of some layers, such as (C + eps I)^-1/2, unpacked where and when it is asked for.

    Args:
        matrices: the packed matrices; sides with equal matrices share the object.
    """

    def __init__(self, matrices: Mapping[SideKey, PackedMatrix]) -> None:
        self._matrices = matrices

    @property
    def keys(self) -> Iterable[SideKey]:
        """The sides that have a matrix."""
        return self._matrices.keys()

    def packed(self, layer: int, side: SideName) -> PackedMatrix:
        """The packed matrix of one side."""
        return self._matrices[layer, side]

    def matrix(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """A digest of a side's matrix, and the matrix (d, d) float64 on the CPU."""
        packed = self._matrices[layer, side]
        return f"{packed.digest:016x}", packed.dense(torch.empty(0, dtype=torch.float64))

    def of_layers(self, likes: Sequence[torch.Tensor]) -> list[LayerRoots]:
        """The matrices of both sides of layers 0, 1, ..., in the dtype and on the device of the layer's `like`."""
        dense: dict[tuple[int, torch.device], torch.Tensor] = {}

        def unpacked(layer: int, side: SideName) -> torch.Tensor:
            packed, like = self._matrices[layer, side], likes[layer]
            if (id(packed), like.device) not in dense:
                dense[id(packed), like.device] = packed.dense(like)
            return dense[id(packed), like.device]

        return [(unpacked(layer, "in"), unpacked(layer, "out")) for layer in range(len(likes))]


@dataclass(frozen=True, slots=True)
class SideSummary:
    """What a whitening has for a side, without its numbers.

    Attributes:
        layer: number of the layer.
        side: the side.
        size: its size d.
        source: number of the layer whose matrices this side has, too; its own number if it has its own.
        matrix: digest of the matrix.
        covariance: digest of the covariance.
    """

    layer: int
    side: SideName
    size: int
    source: int
    matrix: int
    covariance: int


@dataclass(frozen=True, slots=True)
class WhitenedSide:
    """A side's mean covariance over tokens, and its root, or what a metric has instead, as they are stored."""

    summary: SideSummary
    matrix: PackedMatrix
    covariance: PackedMatrix


def whitening_name(tokens: int, examples: int, sides: Iterable[SideSummary]) -> str:
    """16 hex digits that identify the covariances and the matrices of all sides."""
    sha256 = hashlib.sha256(f"{tokens}/{examples}".encode())
    for side in sorted(sides, key=lambda side: (side.layer, side.side)):
        sha256.update(f"/{side.layer}/{side.side}/{side.size}/{side.matrix:016x}/{side.covariance:016x}".encode())
    return sha256.hexdigest()[:16]


def whitened_sides(
    means: Iterable[tuple[Sequence[SideKey], torch.Tensor]],
    matrix_of: Callable[[Sequence[SideKey], torch.Tensor], torch.Tensor] = lambda _, root: root,
) -> list[WhitenedSide]:
    """Covariances and their roots as they are stored, in the order of layers.

    The roots are computed on the device of the covariances, those of one size together. A root is that of the
    covariance before it is rounded.

    Args:
        means: mean covariances (d, d) over tokens, float64, each with the sides that share it.
        matrix_of: what to store instead of a root, from the sides and their root.
    """
    sides: list[WhitenedSide] = []
    for group in _of_one_size(means):
        roots = inverse_roots(torch.stack([mean for _, mean in group]))
        for (keys, mean), root in zip(group, roots, strict=True):
            matrix, covariance, source = pack(matrix_of(keys, root)), pack(mean), keys[0][0]
            for layer, side in keys:
                summary = SideSummary(layer, side, matrix.size, source, matrix.digest, covariance.digest)
                sides.append(WhitenedSide(summary, matrix, covariance))
    return sorted(sides, key=lambda side: (side.summary.layer, side.summary.side))


def _of_one_size(
    means: Iterable[tuple[Sequence[SideKey], torch.Tensor]],
) -> Iterator[list[tuple[Sequence[SideKey], torch.Tensor]]]:
    """Groups of matrices of the same size and device that fit into memory together."""
    pending: dict[tuple[int, torch.device], list[tuple[Sequence[SideKey], torch.Tensor]]] = {}
    for keys, mean in means:
        group = pending.setdefault((len(mean), mean.device), [])
        group.append((keys, mean))
        if len(group) * mean.nbytes >= _BATCH_BYTES:
            yield pending.pop((len(mean), mean.device))
    yield from pending.values()


def exact_roots(covariances: Covariances) -> SideMatrices:
    """The roots of covariances in float64, for an index of an older lorif, which stores no roots."""
    sides = {key: inverse_root(covariances.mean(*key)) for key in covariances.sums}
    return SideMatrices({key: pack(matrix, np.float64) for key, matrix in sides.items()})


def stored_roots(covariances: Covariances) -> tuple[str, list[WhitenedSide]]:
    """The name and the sides of a whitening, with roots and covariances as they are stored."""
    layers = sorted({layer for layer, _ in covariances.sums})
    means = (([(layer, side)], covariances.mean(layer, side)) for layer in layers for side in SIDES)
    sides = whitened_sides(means)
    summaries = [side.summary for side in sides]
    return whitening_name(covariances.tokens, covariances.examples, summaries), sides


def inverse_root(covariance_dd: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    """`inverse_roots` of one covariance."""
    return inverse_roots(covariance_dd[None], epsilon)[0]


def inverse_roots(covariances_Ndd: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    """(C + eps mean(eigenvalues of C) I)^-1/2 of positive semi-definite C, float64; the identity for C = 0.

    C may have any rank and magnitude: it is scaled to a mean eigenvalue of 1 first.
    """
    means_N11 = covariances_Ndd.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    is_zero_N11 = means_N11 <= 0.0
    means_N11 = torch.where(is_zero_N11, 1.0, means_N11)
    values_Nd, vectors_Ndd = torch.linalg.eigh(covariances_Ndd / means_N11)
    powers_N1d = (values_Nd.clamp_min(0.0) + epsilon)[:, None, :] ** -0.5
    roots_Ndd = (vectors_Ndd * powers_N1d) @ vectors_Ndd.mT * means_N11**-0.5
    return torch.where(is_zero_N11, torch.eye(covariances_Ndd.shape[1]).to(roots_Ndd), roots_Ndd)
