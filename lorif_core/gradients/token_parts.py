"""The parts of an example's code, one for each position of its text.

A projected gradient is a sum over positions, G = sum_t a_t e_t^T, with whitened a_t and e_t. What the index stores
of it, C = code(G), is no such sum: factors depend on all positions, and levels are rounded. But there are linear
maps that take G to C. The parts of positions are those under the smallest of them: the least change of the
identity (in the Frobenius norm) with M(G) = C, as in Broyden's method:

    M(X) = X + (C - G) <G, X> / |G|^2

The part of a position is M(a_t e_t^T). It is exactly a_t e_t^T if the code loses nothing. Otherwise the error of
the code, C - G, is divided among the positions by their parts of |G|^2. The parts add up to C for any code.

Shapes: B batch, n rows of a pair (usually a row per position), T positions, d1 and d2 projected sizes.
"""

from typing import Literal

import torch

from lorif_core.gradients.whitened_product import LayerRoots, bounded, whitened_tokens


class TokenParts:
    """The parts of one layer.

    Args:
        A_Bnd: (B, n, d1) projected activations, as `GradientCapture` passes them on.
        E_Bnd: (B, n, d2) projected output gradients.
        roots: the whitening that the pair does not have yet.
        tokens: T, the positions of the batch.
    """

    def __init__(self, A_Bnd: torch.Tensor, E_Bnd: torch.Tensor, roots: LayerRoots | None, tokens: int) -> None:
        self._tokens = tokens
        self._rows = _arrangement(E_Bnd, tokens)
        if roots is not None:
            A_Bnd, E_Bnd = whitened_tokens(A_Bnd, E_Bnd, [roots])
        pair = bounded(A_Bnd, E_Bnd)
        self._A, self._E = pair.A / pair.divisors[0], pair.E / pair.divisors[1]
        self._magnitude = pair.magnitude
        self._G = self._A.transpose(1, 2) @ self._E
        own_BT = self._by_position(((self._A @ self._G) * self._E).sum(dim=2))
        energy_B1 = own_BT.sum(dim=1, keepdim=True)
        self._own_BT = torch.where(
            energy_B1 > 0, own_BT / energy_B1.clamp_min(torch.finfo(own_BT.dtype).tiny), 0.0
        )

    def scores(self, weight_dd: torch.Tensor, stored_B: torch.Tensor) -> torch.Tensor:
        """(B, T) float64: the products of all parts with a folded query.

        Args:
            weight_dd: (d1, d2) the query.
            stored_B: its product with the stored codes of the examples, which the result adds up to.
        """
        weight = weight_dd.to(self._A)
        plain_BT = self._magnitude.double() * self._by_position(((self._A @ weight) * self._E).sum(dim=2)).double()
        error_B1 = stored_B.to(plain_BT)[:, None] - plain_BT.sum(dim=1, keepdim=True)
        return plain_BT + error_B1 * self._own_BT.double()

    def sum_over(self, chosen_BT: torch.Tensor, stored_Bdd: torch.Tensor) -> torch.Tensor:
        """(B, d1, d2) float64: the sum of the parts of some positions.

        Args:
            chosen_BT: 1 for each of these positions, else 0.
            stored_Bdd: the stored codes of the examples.
        """
        chosen_BT = chosen_BT.to(self._A)
        rows_Bn1 = self._to_rows(chosen_BT)[:, :, None]
        magnitude_B11 = self._magnitude.double()[:, :, None]
        plain_Bdd = magnitude_B11 * ((self._A * rows_Bn1).transpose(1, 2) @ self._E).double()
        error_Bdd = stored_Bdd.to(plain_Bdd) - magnitude_B11 * self._G.double()
        return plain_Bdd + error_Bdd * (chosen_BT * self._own_BT).sum(dim=1).double()[:, None, None]

    def _by_position(self, values_Bn: torch.Tensor) -> torch.Tensor:
        """(B, T): values of rows, added up for each position."""
        batch, rows = values_Bn.shape
        if rows == self._tokens:
            return values_Bn
        shape = (batch, -1, self._tokens)
        if self._rows == "outer":
            return values_Bn.view(shape).sum(dim=1)
        if self._rows == "unknown":
            first_BT = values_Bn.new_zeros(batch, self._tokens)
            first_BT[:, 0] = values_Bn.sum(dim=1)
            return first_BT
        return values_Bn.view(batch, self._tokens, -1).sum(dim=2)

    def _to_rows(self, values_BT: torch.Tensor) -> torch.Tensor:
        """(B, n): the value of the position of each row."""
        rows = self._A.shape[1]
        if self._rows == "unknown":
            return values_BT[:, :1].expand(-1, rows)
        times = rows // self._tokens
        return values_BT.repeat(1, times) if self._rows == "outer" else values_BT.repeat_interleave(times, dim=1)


def _arrangement(E_Bnd: torch.Tensor, tokens: int) -> Literal["outer", "inner", "unknown"]:
    """Whether positions follow one another (`outer`, as for several uses of a layer), or rows of one position do.

    The last position predicts nothing, so its rows have no gradient. Rows of no position count as those of the
    first.
    """
    if E_Bnd.shape[1] % tokens:
        return "unknown"
    return "outer" if not E_Bnd[:, tokens - 1 :: tokens].any() else "inner"
