"""Seeded two-sided random projections (LoRIF section 3.1), identical on every worker and device.

A random projection multiplies each side by a dense matrix of +-1; d1 = ceil(I/f) and d2 = ceil(O/f). A whitened
one is the same matrix times a whitening matrix (`whitening.py`). A folded one adds coordinates with random signs,
which needs no matrix product; its whitening is applied to thin matrices later (`whitened_product.py`). In Adam's
metric a fold multiplies coordinates by scales, too (`side_scales.py`).

Shapes: I in_features, O out_features, d1 and d2 projected sizes.
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


class Side(Protocol):
    """One side of a layer's projection. Sides with the same `key` are equal, so layers can share products."""

    @property
    def key(self) -> str:
        """Identity of the side."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., features) -> (..., d) in float32 (float64 stays float64)."""

    def double(self) -> "Side":
        """The same projection for float64 inputs."""


@dataclass(frozen=True, slots=True)
class DenseSide:
    """A random or whitened side: x -> scale * (x @ matrix).

    `matrix` is (features, d) in the layer's dtype with unit RMS (random signs are +-1, exact in every dtype), or
    None for the identity (f = 1). `scale` is applied in float32 after the product.
    """

    key: str
    matrix: torch.Tensor | None
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Side`."""
        projected = _wide(x if self.matrix is None else x @ self.matrix)
        return projected if self.matrix is None else projected * self.scale

    def double(self) -> "DenseSide":
        """See `Side`."""
        return DenseSide(self.key, None if self.matrix is None else self.matrix.double(), self.scale)


@dataclass(frozen=True, slots=True)
class FoldedSide:
    """A folded side: bucket j adds the coordinates j, j + d, j + 2 d, ... times random signs and scales.

    `signs` is (features,) in float32 or float64: +-1 times the scales, if there are some. For d = features, where
    nothing is added, it is the scales alone, or None.
    """

    key: str
    signs: torch.Tensor | None
    size: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Side`."""
        if self.signs is None:
            return _wide(x)
        folded = x[..., : self.size] * self.signs[: self.size]
        for start in range(self.size, x.shape[-1], self.size):
            part = x[..., start : start + self.size]
            folded[..., : part.shape[-1]].addcmul_(part, self.signs[start : start + self.size])
        return folded

    def double(self) -> "FoldedSide":
        """See `Side`."""
        return FoldedSide(self.key, None if self.signs is None else self.signs.double(), self.size)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """P_in and P_out of one layer."""

    inner: Side
    outer: Side


class Whitening(Protocol):
    """Source of the matrices that turn random projections into whitened ones."""

    def matrix(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """A digest of a side's whitening matrix, and the matrix (d, d) float64, to multiply from the right."""


class Scales(Protocol):
    """Source of the scales of the coordinates that folded projections add."""

    def side(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """A digest of a side's scales, and the scales (features,)."""


class ProjectionSet:
    """The projections of all tracked layers; sides with the same key share one matrix.

    Args:
        layers: tracked layers with sizes d1, d2 from `spec.projected_size`.
        spec: kind, factor and seed.
        placements: per layer, the (device, dtype) of its weight.
        whitening: whitening matrices of random projections; None leaves them random. Folded ones ignore it.
        scales: scales of the coordinates of folded projections; None scales nothing.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        spec: ProjectionSpec,
        placements: Sequence[tuple[torch.device, torch.dtype]],
        whitening: Whitening | None = None,
        scales: Scales | None = None,
    ) -> None:
        self._spec, self._whitening, self._scales = spec, whitening, scales
        self._sides: dict[tuple[str, torch.device, torch.dtype], Side] = {}
        self.layers: list[LayerProjection] = []
        for number, (layer, placement) in enumerate(zip(layers, placements, strict=True)):
            # siblings such as gate_proj and up_proj read the same activation: their key has the parent's name
            parent = layer.name.rpartition(".")[0]
            inner = self._side(number, "in", f"{parent}/{layer.in_features}x{layer.d1}", layer, placement)
            outer = self._side(number, "out", f"{layer.name}/{layer.out_features}x{layer.d2}", layer, placement)
            self.layers.append(LayerProjection(inner, outer))

    def _side(
        self, number: int, side: SideName, name: str, layer: LayerSpec, placement: tuple[torch.device, torch.dtype]
    ) -> Side:
        features, size = (layer.in_features, layer.d1) if side == "in" else (layer.out_features, layer.d2)
        random_key = key = f"{side}/{name}"
        whiten = scale = None
        if self._scales is not None:
            digest, scale = self._scales.side(number, side)
            key = f"{random_key}/{digest}"
        if self._whitening is not None and not self._spec.is_folded:
            digest, whiten = self._whitening.matrix(number, side)
            # c_attn and c_proj have the same parent but not the same activation, so their whitenings differ
            key = f"{random_key}/{digest}"
        if (key, *placement) not in self._sides:
            self._sides[key, *placement] = (
                self._folded(key, random_key, features, size, scale, *placement)
                if self._spec.is_folded
                else self._dense(key, random_key, features, size, whiten, *placement)
            )
        return self._sides[key, *placement]

    def _folded(
        self,
        key: str,
        random_key: str,
        features: int,
        size: int,
        scale: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> FoldedSide:
        signs = scale
        if size < features:
            signs = torch.from_numpy(rademacher_signs(1, features, self._spec.seed, f"fold/{random_key}"))[0]
            signs = signs if scale is None else signs * scale
        if signs is None:
            return FoldedSide(key, None, size)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return FoldedSide(key, signs.to(device=device, dtype=wide), size)

    def _dense(
        self,
        key: str,
        random_key: str,
        features: int,
        size: int,
        whiten: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> DenseSide:
        signs = None
        if self._spec.factor > 1:
            signs = torch.from_numpy(rademacher_signs(features, size, self._spec.seed, random_key))
        if whiten is None:
            return DenseSide(key, None if signs is None else signs.to(device=device, dtype=dtype), size**-0.5)
        matrix = whiten if signs is None else signs.double() @ whiten * size**-0.5
        rms = float(matrix.square().mean().sqrt()) or 1.0
        return DenseSide(key, (matrix / rms).to(device=device, dtype=dtype), rms)
