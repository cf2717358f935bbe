"""The whitening of recorded rows, and the covariances that go on accumulating, as bytes of the journal."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.gradients.roots import SideMatrices, SideSummary, WhitenedSide, stored_roots
from lorif_core.gradients.symmetric import PackedMatrix, PackedSum, add_sums, pack_sum
from lorif_core.gradients.whitening import SIDES, Covariances, SideKey

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class RecordedWhitening:
    """A whitening as it is stored.

    Attributes:
        name: digest of covariances and roots.
        tokens: tokens that it was measured on.
        examples: examples that it was measured on.
        step: the step after which it was made; rows are made from the next one on.
        sides: covariances and roots.
    """

    name: str
    tokens: int
    examples: int
    step: int
    sides: list[WhitenedSide]

    @property
    def roots(self) -> SideMatrices:
        """The roots as stored, so that rows are whitened with the numbers that queries will be."""
        return SideMatrices({(side.summary.layer, side.summary.side): side.matrix for side in self.sides})

    @property
    def covariances(self) -> Covariances:
        """The covariances, as sums over the tokens."""
        like = torch.empty(0, dtype=torch.float64)
        return Covariances(
            {
                (side.summary.layer, side.summary.side): side.covariance.dense(like) * self.tokens
                for side in self.sides
            },
            self.tokens,
            self.examples,
        )


def whiten(covariances: Covariances, step: int) -> RecordedWhitening:
    """The whitening by covariances; their roots are computed on their device."""
    name, sides = stored_roots(covariances)
    return RecordedWhitening(name, covariances.tokens, covariances.examples, step, sides)


def whitening_bytes(whitening: RecordedWhitening) -> bytes:
    """A whitening as bytes."""
    arrays: dict[str, np.ndarray] = {
        "header": np.array([whitening.tokens, whitening.examples, whitening.step]),
        "name": np.array(whitening.name),
    }
    for side in whitening.sides:
        key = f"{side.summary.layer}/{side.summary.side}"
        for kind, packed in (("matrix", side.matrix), ("covariance", side.covariance)):
            arrays[f"{key}/{kind}/scales"], arrays[f"{key}/{kind}/levels"] = packed.scales, packed.levels
    return _written(arrays)


def whitening_of(content: bytes) -> RecordedWhitening:
    """Inverse of `whitening_bytes`."""
    arrays = _read(content)
    tokens, examples, step = arrays["header"].tolist()
    sides = []
    for layer, side in sorted({(int(key.split("/")[0]), key.split("/")[1]) for key in arrays if "/" in key}):
        matrix, covariance = (
            PackedMatrix(arrays[f"{layer}/{side}/{kind}/scales"], arrays[f"{layer}/{side}/{kind}/levels"])
            for kind in ("matrix", "covariance")
        )
        name = SIDES[SIDES.index(side)]
        summary = SideSummary(layer, name, matrix.size, layer, matrix.digest, covariance.digest)
        sides.append(WhitenedSide(summary, matrix, covariance))
    return RecordedWhitening(str(arrays["name"]), tokens, examples, step, sides)


def moments_bytes(covariances: Covariances) -> bytes:
    """Sums of one process as bytes, in float32."""
    arrays: dict[str, np.ndarray] = {"header": np.array([covariances.tokens, covariances.examples])}
    for (layer, side), matrix in covariances.sums.items():
        packed = pack_sum(matrix)
        arrays[f"{layer}/{side}"] = packed.levels
        arrays[f"{layer}/{side}/unit"] = np.array([packed.size, packed.unit])
    return _written(arrays)


def moments_of(content: bytes) -> Covariances:
    """Inverse of `moments_bytes`."""
    arrays = _read(content)
    tokens, examples = arrays["header"].tolist()
    sums: dict[SideKey, torch.Tensor] = {}
    for key in arrays:
        if key == "header" or key.endswith("/unit"):
            continue
        layer, side = key.split("/")
        size, unit = arrays[f"{key}/unit"].tolist()
        packed = PackedSum(int(size), unit, arrays[key])
        sums[int(layer), SIDES[SIDES.index(side)]] = add_sums([packed], _CPU)
    return Covariances(sums, tokens, examples)


def _written(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _read(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
