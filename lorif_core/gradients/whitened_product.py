"""Products of thin matrices with G = W_a A^T E W_b, the whitened gradients of many examples, without forming G.

Thin matrices have p rows per example, p far below the tokens and the sides. A product then costs T (d1 + d2) p
multiply-adds for the tokens and (d1^2 + d2^2) p for the whitening, while whitening all tokens first costs
T (d1^2 + d2^2). Rows with fewer tokens than all products have thin rows are whitened first, because that is
cheaper there (RESEARCH-2, section 2).

Shapes: L layers of the same sizes, N = L B examples layer by layer, T tokens, d1 and d2 projected sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorif_core.gradients.quantisation import TINY

LayerRoots = tuple[torch.Tensor, torch.Tensor]
"""W_a (d1, d1) and W_b (d2, d2) of a layer, symmetric."""


class WhitenedProduct:
    """G = W_a A^T E W_b / (largest |A| largest |E|) of N examples; the divisor keeps products in range.

    Args:
        A_NTd: (N, T, d1) projected activations; arbitrary at masked tokens, where E is zero.
        E_NTd: (N, T, d2) projected output gradients.
        roots: W_a and W_b of each layer; None means the identity.
        thin_rows: number of thin rows per example that all products together will have.

    Attributes:
        magnitude: (N, 1) the divisor; NaN for examples with an entry that is not finite, whose G is zero.
    """

    def __init__(
        self, A_NTd: torch.Tensor, E_NTd: torch.Tensor, roots: Sequence[LayerRoots] | None, thin_rows: int
    ) -> None:
        pair = bounded(A_NTd, E_NTd)
        A_NTd, E_NTd, self.magnitude = pair.A, pair.E, pair.magnitude
        if roots is not None and A_NTd.shape[1] <= thin_rows:
            A_NTd, E_NTd = whitened_tokens(A_NTd, E_NTd, roots)
            roots = None
        self._A, self._E = A_NTd, E_NTd
        self._left = None if roots is None else [left for left, _ in roots]
        self._right = None if roots is None else [right for _, right in roots]
        self._divisors = pair.divisors

    @property
    def sizes(self) -> tuple[int, int]:
        """(d1, d2)."""
        return self._A.shape[2], self._E.shape[2]

    def right(self, v_Npd: torch.Tensor) -> torch.Tensor:
        """(N, p, d1): the rows (G v)^T for the rows v (N, p, d2)."""
        by_token = whiten_rows(v_Npd, self._right) @ self._E.transpose(1, 2) / self._divisors[1]
        return whiten_rows(by_token @ self._A / self._divisors[0], self._left)

    def right_of_all(self, v_pd: torch.Tensor) -> torch.Tensor:
        """(N, p, d1): as `right` with the same rows v (p, d2) for all examples, whitened once a layer."""
        by_layer = [v_pd] if self._right is None else [v_pd @ root for root in self._right]
        parts = self._E.reshape(len(by_layer), -1, v_pd.shape[1])
        products = torch.stack([part @ v.T for part, v in zip(parts, by_layer, strict=True)])
        by_token = products.view(*self._E.shape[:2], len(v_pd)).transpose(1, 2) / self._divisors[1]
        return whiten_rows(by_token @ self._A / self._divisors[0], self._left)

    def left(self, u_Npd: torch.Tensor) -> torch.Tensor:
        """(N, p, d2): the rows (G^T u)^T for the rows u (N, p, d1)."""
        by_token = whiten_rows(u_Npd, self._left) @ self._A.transpose(1, 2) / self._divisors[0]
        return whiten_rows(by_token @ self._E / self._divisors[1], self._right)


@dataclass(frozen=True, slots=True)
class BoundedPair:
    """A pair whose examples with an entry that is not finite are zero.

    Attributes:
        A: (N, T, d1).
        E: (N, T, d2).
        divisors: (N, 1, 1) of A and of E, which make their largest entries 1.
        magnitude: (N, 1) product of the largest entries; NaN for examples with an entry that is not finite.
    """

    A: torch.Tensor
    E: torch.Tensor
    divisors: tuple[torch.Tensor, torch.Tensor]
    magnitude: torch.Tensor


def bounded(A_NTd: torch.Tensor, E_NTd: torch.Tensor) -> BoundedPair:
    """The pair without examples that are not finite, because one NaN would fail the eigensolver for all."""
    a_scale, e_scale = _largest(A_NTd), _largest(E_NTd)
    finite = torch.isfinite(a_scale * e_scale)
    if finite.device.type != "cpu" or not finite.all():  # a GPU would have to finish before the host knows
        A_NTd, E_NTd = (torch.where(finite, x, 0.0) for x in (A_NTd, E_NTd))
    a_divisor, e_divisor = (torch.where(finite, scale, 1.0).clamp_min(TINY) for scale in (a_scale, e_scale))
    magnitude = torch.where(finite, a_scale * e_scale, torch.nan)[:, :, 0]
    return BoundedPair(A_NTd, E_NTd, (a_divisor, e_divisor), magnitude)


def _largest(x_NTd: torch.Tensor) -> torch.Tensor:
    """(N, 1, 1): the largest absolute entry; NaN or infinite if one is."""
    flat = x_NTd.flatten(1)  # aminmax and norms are many times slower on the CPU
    return torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))[:, None, None]


def whiten_rows(x_Npd: torch.Tensor, roots: Sequence[torch.Tensor] | None) -> torch.Tensor:
    """x W with the W of each example's layer: one matrix product per layer."""
    if roots is None:
        return x_Npd
    parts = x_Npd.reshape(len(roots), -1, x_Npd.shape[2])
    return torch.stack([part @ root for part, root in zip(parts, roots, strict=True)]).view(x_Npd.shape)


def whitened_tokens(
    A_NTd: torch.Tensor, E_NTd: torch.Tensor, roots: Sequence[LayerRoots]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A W_a and E W_b."""
    left, right = zip(*roots, strict=True)
    return whiten_rows(A_NTd, left), whiten_rows(E_NTd, right)


def whitened_gradients(A_NTd: torch.Tensor, E_NTd: torch.Tensor, roots: Sequence[LayerRoots]) -> torch.Tensor:
    """G (N, d1, d2), formed. Long rows are summed first, short ones whitened first, whichever is cheaper."""
    tokens, d1, d2 = A_NTd.shape[1], A_NTd.shape[2], E_NTd.shape[2]
    if tokens * (d1**2 + d2**2) < d1 * d2 * (d1 + d2):
        A, E = whitened_tokens(A_NTd, E_NTd, roots)
        return A.transpose(1, 2) @ E
    left, right = zip(*roots, strict=True)
    half = whiten_rows(E_NTd.transpose(1, 2) @ A_NTd, left)
    return whiten_rows(half.transpose(1, 2).contiguous(), right)
