"""Low-rank factors of G = A^T E, without forming G where that is cheaper.

Shapes: B batch, T tokens, m and n the smaller and the larger side, c rank, p = c + 1 columns of the block.
"""

from collections.abc import Callable
from functools import cache

import torch

from lorif_core.gradients.projection import counter_generator
from lorif_core.gradients.quantisation import TINY

# A matrix-vector product reads each matrix entry for one multiply-add; a matrix-matrix product reuses it.
_MATVEC_PENALTY = 32


def power_rounds(rank: int) -> int:
    """Rounds of power iteration: 8 for rank 1, 16 for higher ranks (DESIGN, section 2)."""
    return 8 if rank == 1 else 16


def low_rank_factors(A: torch.Tensor, E: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (B, d1, c), (B, d2, c) of G = A^T E; the columns of the smaller side's factor are orthonormal."""
    if A.shape[2] <= E.shape[2]:
        return _smaller_side_first(A, E, rank)
    V, U = _smaller_side_first(E, A, rank)
    return U, V


def _smaller_side_first(S: torch.Tensor, L: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors Q (B, m, c) and G^T Q (B, n, c) of G = S^T L, m <= n, with Q from power iteration on G G^T.

    The largest entries of S and L are 1, so the squares in G G^T neither underflow nor overflow.
    """
    St, Lt = S.transpose(1, 2), L.transpose(1, 2)
    start = _start_basis(S.shape[2], rank, S.device, S.dtype).expand(len(S), -1, -1)
    if _is_implicit_cheaper(S.shape[1], S.shape[2], L.shape[2], rank):
        basis = _leading_basis(lambda Q: St @ (L @ (Lt @ (S @ Q))), start, rank)
        other = Lt @ (S @ basis)
    else:
        G = St @ L
        gram = G @ G.transpose(1, 2)
        basis = _leading_basis(lambda Q: gram @ Q, start, rank)
        other = G.transpose(1, 2) @ basis
    return basis, other


def _leading_basis(
    apply: Callable[[torch.Tensor], torch.Tensor], start_Bmp: torch.Tensor, rank: int
) -> torch.Tensor:
    """An orthonormal basis (B, m, c) of the leading eigenvectors; zero for a zero operator.

    The block is one column wider than the rank: a single start vector that is nearly orthogonal to the leading
    eigenvector would converge slowly and amplify rounding errors. Rayleigh-Ritz selects the best c of the block.
    """
    block = start_Bmp
    for _ in range(power_rounds(rank)):
        block = _orthonormal(apply(block))
    ritz = block.transpose(1, 2) @ apply(block)
    if rank > 1 or ritz.shape[2] == 1:
        _, vectors = torch.linalg.eigh(ritz)
        leading = vectors[:, :, -rank:].flip(
            2
        )  # eigenvalues of eigh ascend; the smallest belongs to the extra column
        # eigh returns eigenvectors with an arbitrary sign; codes must not depend on it
        largest = leading.gather(1, leading.abs().argmax(dim=1, keepdim=True))
        return block @ (leading * torch.where(largest < 0, -1.0, 1.0).to(leading))
    # the leading eigenvector of a symmetric 2 x 2 matrix, in closed form
    angle = 0.5 * torch.atan2(2 * ritz[:, 0, 1], ritz[:, 0, 0] - ritz[:, 1, 1])
    return block @ torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)[:, :, None]


def _orthonormal(x_Bmp: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns: Gram-Schmidt for two columns, because a batched QR is slow there."""
    if x_Bmp.shape[2] != 2:
        return torch.linalg.qr(x_Bmp).Q
    first, second = _unit_columns(x_Bmp[:, :, :1]), x_Bmp[:, :, 1:]
    residual = second - first * (first * second).sum(dim=1, keepdim=True)
    # the residual of a column parallel to the first is rounding error, not a direction
    noise = 100 * torch.finfo(x_Bmp.dtype).eps * second.norm(dim=1, keepdim=True)
    residual = torch.where(residual.norm(dim=1, keepdim=True) > noise, _unit_columns(residual), 0.0)
    return torch.cat([first, residual], dim=2)


def _unit_columns(x_Bmp: torch.Tensor) -> torch.Tensor:
    return x_Bmp / x_Bmp.norm(dim=1, keepdim=True).clamp_min(TINY)


@cache
def _start_basis(size: int, rank: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A fixed random start: codes must not depend on the other examples of the batch or on the worker."""
    width = min(size, rank + 1)
    normal = counter_generator(0, f"start/{size}x{rank}").standard_normal((size, width))
    return torch.linalg.qr(torch.from_numpy(normal)).Q.to(device, dtype)


def _is_implicit_cheaper(tokens: int, small: int, large: int, rank: int) -> bool:
    """Whether iterating on S and L takes fewer weighted multiply-adds than forming G and G G^T."""
    rounds = power_rounds(rank)
    explicit = tokens * small * large + small * small * large + rounds * (rank + 1) * small * small
    implicit = rounds * (rank + 1) * 2 * tokens * (small + large)
    return implicit * _MATVEC_PENALTY < explicit
