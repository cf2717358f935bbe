"""Covariances of projected gradients, which whiten them (`roots.py`).

A layer has the covariances A = E[x x^T] and S = E[d d^T] over tokens. Under the projections they are
A_p = P_in^T A P_in and S_p = P_out^T S P_out. A calibration pass sums them: products over the tokens of a batch in
float32, their sum over batches in float64, on the device of the layer.

Shapes: B batch, T tokens, N tokens of all examples, d the size of a side.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lorif_core.gradients.projection import SideName
from lorif_core.gradients.symmetric import PackedSum, add_sums, pack_sum
from lorif_core.spec import LayerSpec

_COLUMNS = 128  # of a block of a product with itself: fewer save more work, but their products are slower
_SMALL = 1e-12  # squares of numbers a million times smaller are still normal in float32
_SIBLINGS = 3  # layers before one that may share its input: q, k and v come one after another
SIDES: tuple[SideName, SideName] = ("in", "out")
SideKey = tuple[int, SideName]
"""Number of a layer, and its side."""


@dataclass(slots=True)
class Covariances:
    """Sums over tokens of x x^T (d1, d1) and d d^T (d2, d2) by (layer, side), float64."""

    sums: dict[SideKey, torch.Tensor] = field(default_factory=dict)
    tokens: int = 0
    examples: int = 0

    def add(self, other: "Covariances") -> None:
        """Add the sums over other tokens."""
        for key, matrix in other.sums.items():
            if key in self.sums:
                self.sums[key] += matrix
            else:
                self.sums[key] = matrix.clone()
        self.tokens += other.tokens
        self.examples += other.examples

    def digest(self) -> str:
        """16 hex digits that identify these sums."""
        sha256 = hashlib.sha256(f"{self.tokens}/{self.examples}".encode())
        for (layer, side), matrix in sorted(self.sums.items()):
            sha256.update(f"/{layer}/{side}/".encode())
            sha256.update(matrix.cpu().numpy().tobytes())
        return sha256.hexdigest()[:16]

    def mean(self, layer: int, side: SideName) -> torch.Tensor:
        """Mean over tokens (d, d) of one side."""
        return self.sums[layer, side] / max(self.tokens, 1)

    def packed(self, layers: Iterable[int]) -> dict[SideKey, PackedSum]:
        """The sums of some layers, to be sent; layers that share their input share its sum."""
        packed: dict[SideKey, PackedSum] = {}
        siblings: list[tuple[torch.Tensor, PackedSum]] = []
        for key in ((layer, side) for layer in layers for side in SIDES):
            matrix = self.sums[key]
            if key[1] == "out":
                packed[key] = pack_sum(matrix)
                continue
            same = (other for of, other in siblings if of.device == matrix.device and torch.equal(of, matrix))
            packed[key] = next(same, None) or pack_sum(matrix)
            siblings = [*siblings[1 - _SIBLINGS :], (matrix, packed[key])]
        return packed


def summed(
    parts: Sequence[Mapping[SideKey, PackedSum]], device: torch.device
) -> Iterator[tuple[list[SideKey], torch.Tensor]]:
    """The sums over all parts of a sample, each with the sides that share it, float64 on a device.

    The same parts in the same order give the same bits.
    """
    sharing: dict[tuple[int, ...], list[SideKey]] = {}
    for key in parts[0]:
        sharing.setdefault(tuple(id(part[key]) for part in parts), []).append(key)
    for keys in sharing.values():
        yield keys, add_sums([part[keys[0]] for part in parts], device)


def covariance_bytes(layers: Sequence[LayerSpec]) -> int:
    """Bytes of the covariances of all layers."""
    return sum(8 * (layer.d1**2 + layer.d2**2) for layer in layers)


def whitening_bytes(layers: Sequence[LayerSpec]) -> int:
    """Bytes of the covariances and of the roots of all layers, in float64 and float32."""
    return covariance_bytes(layers) * 3 // 2


class CovarianceSink:
    """Sums the covariances of the captured pairs (A, E) of a calibration pass, without padding tokens.

    The sums stay on the devices of the layers.

    Args:
        sizes: (d1, d2) of every layer.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = sizes
        self._mask = torch.empty(0)
        self._masks: dict[torch.device, torch.Tensor] = {}
        self._shared: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Begin at zero."""
        self._sums: dict[SideKey, torch.Tensor] = {}
        self._tokens = self._examples = 0

    def start(self, lengths: np.ndarray, tokens: int) -> None:
        """Prepare for a batch of examples with `lengths` tokens, padded to `tokens`."""
        self._mask = torch.arange(tokens)[None] < torch.from_numpy(lengths)[:, None]
        self._masks.clear()
        self._shared = None
        self._tokens += int(lengths.sum())
        self._examples += len(lengths)

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        """Add a pair (A, E) of one layer from `GradientCapture`."""
        self._add(index, "in", self._moment_of_inputs(A_BTd, E_BTd))
        self._add(index, "out", second_moment(E_BTd.flatten(0, 1)))  # padding has a zero gradient

    def _moment_of_inputs(self, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> torch.Tensor:
        """The second moment of A without padding; layers that share A, one after another, share the product."""
        if A_BTd.shape[1] != self._mask.shape[1]:  # other rows than one per token
            return second_moment(A_BTd.flatten(0, 1), E_BTd.abs().amax(dim=2).flatten() > 0)
        if self._shared is None or self._shared[0] is not A_BTd:
            self._shared = A_BTd, second_moment(A_BTd.flatten(0, 1), self._mask_on(A_BTd.device))
        return self._shared[1]

    def _mask_on(self, device: torch.device) -> torch.Tensor:
        """The mask of tokens on a device, moved there once for each batch."""
        if device not in self._masks:
            self._masks[device] = self._mask.flatten().to(device)
        return self._masks[device]

    def _add(self, index: int, side: SideName, moment: torch.Tensor) -> None:
        if (index, side) not in self._sums:
            self._sums[index, side] = torch.zeros_like(moment)
        self._sums[index, side] += moment

    @property
    def examples(self) -> int:
        """Number of examples so far."""
        return self._examples

    @property
    def covariances(self) -> Covariances:
        """The sums so far, on the devices of the layers; zeros for a layer that received no gradient."""
        sums = {
            (layer, side): self._sums[layer, side]
            if (layer, side) in self._sums
            else torch.zeros(size, size, dtype=torch.float64)
            for layer, pair in enumerate(self._sizes)
            for side, size in zip(SIDES, pair, strict=True)
        }
        return Covariances(sums, self._tokens, self._examples)


def second_moment(x_Nd: torch.Tensor, is_token_N: torch.Tensor | None = None) -> torch.Tensor:
    """x^T x in float64, without tokens that are not finite; a build skips their examples too.

    The product is in float32 at most. The largest entry is scaled to 1 before it if squares could underflow or
    overflow, as those of tiny gradients do.

    Args:
        x_Nd: a row per token.
        is_token_N: False for rows that do not count; None counts all.
    """
    if x_Nd.device.type != "cpu":
        return _moment_on_device(x_Nd, is_token_N)
    largest = _largest(x_Nd)
    if not math.isfinite(largest):
        x_Nd = torch.where(torch.isfinite(x_Nd).all(dim=1, keepdim=True), x_Nd, 0.0)
        largest = _largest(x_Nd)
    scale = 1.0 if largest == 0.0 or _SMALL < largest < 1 / _SMALL else largest
    if scale != 1.0:
        x_Nd = x_Nd / scale
    if is_token_N is not None and not bool(is_token_N.all()):
        x_Nd = x_Nd * is_token_N[:, None]
    return _gram(x_Nd).double() * scale**2


def _moment_on_device(x_Nd: torch.Tensor, is_token_N: torch.Tensor | None) -> torch.Tensor:
    """`second_moment` without a word from the device to the host, for which the host would have to wait."""
    counts_N = torch.isfinite(x_Nd).all(dim=1)
    if is_token_N is not None:
        counts_N = counts_N & is_token_N
    x_Nd = torch.where(counts_N[:, None], x_Nd, 0.0)
    if not x_Nd.numel():
        return x_Nd.new_zeros(x_Nd.shape[1], x_Nd.shape[1], dtype=torch.float64)
    largest = x_Nd.abs().amax()
    scale = torch.where(largest > 0, largest, 1.0)
    x_Nd = x_Nd / scale
    return (x_Nd.T @ x_Nd).double() * scale.double() ** 2


def _gram(x_Nd: torch.Tensor) -> torch.Tensor:
    """x^T x; only blocks on and above the diagonal are computed, the others mirror them."""
    size = x_Nd.shape[1]
    gram = x_Nd.new_empty(size, size)
    for start in range(0, size, _COLUMNS):
        stop = min(start + _COLUMNS, size)
        gram[start:stop, start:] = x_Nd[:, start:stop].T @ x_Nd[:, start:]
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def _largest(x_Nd: torch.Tensor) -> float:
    """The largest magnitude, or NaN or infinity if an entry is not finite; in one pass without a copy."""
    if not x_Nd.numel():
        return 0.0
    low, high = torch.stack(torch.aminmax(x_Nd)).tolist()
    return math.nan if math.isnan(low) else max(-low, high)
