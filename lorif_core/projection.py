"""Seeded two-sided random projections (LoRIF section 3.1): any worker on any device makes the same matrix.

Shapes: I in_features, O out_features, d1 = ceil(I/f), d2 = ceil(O/f).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.spec import LayerSpec, ProjectionSpec


def projected_size(features: int, factor: int) -> int:
    """ceil(features / factor)."""
    return -(-features // factor)


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
    """One side of a layer's projection: x -> scale * (x @ signs).

    `signs` is (features, d) in the layer's dtype, +-1, exact in every dtype; None is the identity (f = 1).
    `scale` is 1/sqrt(d), applied in float32 after the product. Sides of equal `key` are the same matrix, so
    layers that read the same activation share its projection.
    """

    key: str
    signs: torch.Tensor | None
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., features) -> (..., d) in float32 (float64 stays float64)."""
        projected = x if self.signs is None else x @ self.signs
        wide = projected if projected.dtype == torch.float64 else projected.float()
        return wide if self.signs is None else wide * self.scale


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """P_in and P_out of one layer."""

    inner: Side
    outer: Side


class ProjectionSet:
    """The projections of all tracked layers; matrices of equal key are made once.

    Args:
        layers: tracked layers; sizes d1, d2 as `projected_size` gives them.
        spec: kind, factor and seed.
        placements: per layer, the (device, dtype) of its weight.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        spec: ProjectionSpec,
        placements: Sequence[tuple[torch.device, torch.dtype]],
    ) -> None:
        self._spec = spec
        self._made: dict[tuple[str, torch.device, torch.dtype], Side] = {}
        self.layers = [
            LayerProjection(
                # siblings such as q_proj, k_proj and v_proj read one activation: keyed by their parent
                self._side(f"in/{layer.name.rpartition('.')[0]}", layer.in_features, layer.d1, *place),
                self._side(f"out/{layer.name}", layer.out_features, layer.d2, *place),
            )
            for layer, place in zip(layers, placements, strict=True)
        ]

    def _side(self, name: str, features: int, size: int, device: torch.device, dtype: torch.dtype) -> Side:
        key = f"{name}/{features}x{size}"
        if (key, device, dtype) not in self._made:
            signs = None
            if self._spec.factor > 1:
                matrix = rademacher_signs(features, size, self._spec.seed, key)
                signs = torch.from_numpy(matrix).to(device=device, dtype=dtype)
            self._made[key, device, dtype] = Side(key, signs, size**-0.5)
        return self._made[key, device, dtype]
