"""Seeded two-sided random projections (LoRIF section 3.1), identical on every worker and device.

A `whitened` projection is the same random matrix times a whitening matrix (`whitening.py`).

Shapes: I in_features, O out_features, d1 = ceil(I/f), d2 = ceil(O/f).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from lorif_core.spec import LayerSpec, ProjectionSpec

SideName = Literal["in", "out"]


def counter_generator(seed: int, key: str) -> np.random.Generator:
    """A Philox stream determined by (seed, key): counter-based, identical on every platform."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def rademacher_signs(rows: int, cols: int, seed: int, key: str) -> np.ndarray:
    """int8 (rows, cols) of independent +-1, determined by (seed, key, rows, cols)."""
    words = counter_generator(seed, key).bit_generator.random_raw(-(-rows * cols // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=rows * cols)
    return (bits.astype(np.int8) * 2 - 1).reshape(rows, cols)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a layer's projection: x -> scale * (x @ matrix).

    `matrix` is (features, d) in the layer's dtype with unit RMS (random signs are +-1, exact in every dtype), or
    None for the identity (f = 1). `scale` is applied in float32 after the product. Sides with the same `key` have
    the same matrix, so layers that read the same activation share its projection.
    """

    key: str
    matrix: torch.Tensor | None
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., features) -> (..., d) in float32 (float64 stays float64)."""
        projected = x if self.matrix is None else x @ self.matrix
        wide = projected if projected.dtype == torch.float64 else projected.float()
        return wide if self.matrix is None else wide * self.scale


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """P_in and P_out of one layer."""

    inner: Side
    outer: Side


class Whitening(Protocol):
    """Source of the matrices that turn random projections into whitened ones."""

    def matrix(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """A digest of a side's whitening matrix, and the matrix (d, d) float64, to multiply from the right."""


class ProjectionSet:
    """The projections of all tracked layers; sides with the same key share one matrix.

    Args:
        layers: tracked layers with sizes d1, d2 from `spec.projected_size`.
        spec: kind, factor and seed.
        placements: per layer, the (device, dtype) of its weight.
        whitening: whitening matrices; None gives random projections.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        spec: ProjectionSpec,
        placements: Sequence[tuple[torch.device, torch.dtype]],
        whitening: Whitening | None = None,
    ) -> None:
        self._spec, self._whitening = spec, whitening
        self._sides: dict[tuple[str, torch.device, torch.dtype], Side] = {}
        self.layers: list[LayerProjection] = []
        for number, (layer, placement) in enumerate(zip(layers, placements, strict=True)):
            # siblings such as q_proj, k_proj and v_proj read the same activation: their key has the parent's name
            parent = layer.name.rpartition(".")[0]
            inner = self._side(number, "in", f"{parent}/{layer.in_features}x{layer.d1}", layer, placement)
            outer = self._side(number, "out", f"{layer.name}/{layer.out_features}x{layer.d2}", layer, placement)
            self.layers.append(LayerProjection(inner, outer))

    def _side(
        self, number: int, side: SideName, name: str, layer: LayerSpec, placement: tuple[torch.device, torch.dtype]
    ) -> Side:
        random_key = key = f"{side}/{name}"
        whiten = None
        if self._whitening is not None:
            digest, whiten = self._whitening.matrix(number, side)
            # c_attn and c_proj have the same parent but not the same activation, so their whitenings differ
            key = f"{random_key}/{digest}"
        if (key, *placement) not in self._sides:
            features, size = (layer.in_features, layer.d1) if side == "in" else (layer.out_features, layer.d2)
            self._sides[key, *placement] = self._make_side(key, random_key, features, size, whiten, *placement)
        return self._sides[key, *placement]

    def _make_side(
        self,
        key: str,
        random_key: str,
        features: int,
        size: int,
        whiten: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Side:
        signs = None
        if self._spec.factor > 1:
            signs = torch.from_numpy(rademacher_signs(features, size, self._spec.seed, random_key))
        if whiten is None:
            return Side(key, None if signs is None else signs.to(device=device, dtype=dtype), size**-0.5)
        matrix = whiten if signs is None else signs.double() @ whiten * size**-0.5
        rms = float(matrix.square().mean().sqrt()) or 1.0
        return Side(key, (matrix / rms).to(device=device, dtype=dtype), rms)
