"""Seeded two-sided random projections (LoRIF section 3.1): any worker on any device makes the same matrix.

`whitened` ones are the same matrices times a whitening (`whitening.py`): everything else is one code path.

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
    """A Philox stream named by (seed, key): counter-based, the same on every platform."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def rademacher_signs(rows: int, cols: int, seed: int, key: str) -> np.ndarray:
    """int8 (rows, cols) of independent +-1, a function of (seed, key, rows, cols) alone."""
    words = counter_generator(seed, key).bit_generator.random_raw(-(-rows * cols // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=rows * cols)
    return (bits.astype(np.int8) * 2 - 1).reshape(rows, cols)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a layer's projection: x -> scale * (x @ matrix).

    `matrix` is (features, d) in the layer's dtype, of unit RMS (for random signs: +-1, exact in every dtype); None
    is the identity (f = 1). `scale` is applied in float32 after the product. Sides of equal `key` are the same
    matrix, so layers that read the same activation share its projection.
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
    """What turns random projections into whitened ones."""

    def matrix(self, layer: int, side: SideName) -> tuple[str, torch.Tensor]:
        """(d, d) float64 to multiply a side's random projection by, and what names it."""


class ProjectionSet:
    """The projections of all tracked layers; matrices of equal key are made once.

    Args:
        layers: tracked layers; sizes d1, d2 as `spec.projected_size` gives them.
        spec: kind, factor and seed.
        placements: per layer, the (device, dtype) of its weight.
        whitening: of `whitened` projections; None gives the random ones.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        spec: ProjectionSpec,
        placements: Sequence[tuple[torch.device, torch.dtype]],
        whitening: Whitening | None = None,
    ) -> None:
        self._spec, self._whitening = spec, whitening
        self._made: dict[tuple[str, torch.device, torch.dtype], Side] = {}
        self.layers = [
            LayerProjection(
                # siblings such as q_proj, k_proj and v_proj read one activation: keyed by their parent
                self._side(
                    number, "in", f"{layer.name.rpartition('.')[0]}/{layer.in_features}x{layer.d1}", layer, place
                ),
                self._side(number, "out", f"{layer.name}/{layer.out_features}x{layer.d2}", layer, place),
            )
            for number, (layer, place) in enumerate(zip(layers, placements, strict=True))
        ]

    def _side(
        self, number: int, side: SideName, name: str, layer: LayerSpec, place: tuple[torch.device, torch.dtype]
    ) -> Side:
        random_key = key = f"{side}/{name}"
        whiten = None
        if self._whitening is not None:
            digest, whiten = self._whitening.matrix(number, side)
            key = f"{random_key}/{digest}"  # siblings share an activation's whitening, c_attn and c_proj do not
        if (key, *place) not in self._made:
            features, size = (layer.in_features, layer.d1) if side == "in" else (layer.out_features, layer.d2)
            self._made[key, *place] = self._make(key, random_key, features, size, whiten, *place)
        return self._made[key, *place]

    def _make(
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
        whole = whiten if signs is None else signs.double() @ whiten * size**-0.5
        rms = float(whole.square().mean().sqrt()) or 1.0
        return Side(key, (whole / rms).to(device=device, dtype=dtype), rms)
