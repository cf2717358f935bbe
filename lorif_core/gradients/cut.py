"""Best-fitting sums of sign matrices: sum_k s_k u_k v_k^T ~ G with u_k and v_k of +-1.

One round of a randomised range finder (Halko et al., arXiv 0909.4061, algorithm 4.1) gives the leading factors of
G, with Cholesky QR because the blocks are tall and thin. Their signs are the start. Then a sweep sets each sign
vector to the best one given all others, and refits the scales by least squares. More rounds and sweeps capture
more energy, but hardly change the scores (RESEARCH-2, section 4).

Shapes: N examples, d1 and d2 projected sizes, c rank, p probes, at least c + 1. Thin matrices have a row per term.
"""

from functools import cache

import torch

from lorif_core.gradients.projection import rademacher_signs
from lorif_core.gradients.quantisation import TINY, signs
from lorif_core.gradients.whitened_product import WhitenedProduct

_SWEEPS = 1
_MIN_PROBES = 9  # with fewer, |G|^2 would be too uncertain
_RIDGE = 1e-6
MIN_CAPTURED = 1e-3
"""Bounds the unbiasing factor by its inverse."""


def thin_rows(rank: int) -> int:
    """Thin rows per example of all products of `cut_factors`."""
    return 2 * _probe_count(rank) + rank * (1 + 2 * _SWEEPS)


def _probe_count(rank: int) -> int:
    return max(rank + 1, _MIN_PROBES)


def cut_factors(
    product: WhitenedProduct, rank: int, *, unbiased: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs U (N, c, d1) and V (N, c, d2), and scales (N, c) >= 0, with sum_k s_k u_k v_k^T ~ G.

    Args:
        product: the gradients.
        rank: c, at most the smaller side.
        unbiased: multiply the scales so that <G, decoded> = |G|^2, with |G|^2 from the probes.
    """
    block = probes(product.sizes[1], rank, product.magnitude.device, product.magnitude.dtype)
    sketch = product.right_of_all(block)
    U, V = (signs(factor) for factor in _leading_factors(product, sketch, rank))
    seen = product.right(V)
    scales = _joint_scales(seen, U, V)
    for _ in range(_SWEEPS):
        U = _best_signs(seen, U, V, scales)
        seen = product.left(U)
        scales = _joint_scales(seen, V, U)
        V = _best_signs(seen, V, U, scales)
        seen = product.right(V)
        scales = _joint_scales(seen, U, V)
    if unbiased:
        energy = sketch.square().sum(dim=(1, 2))[:, None] / len(block)
        captured = ((seen * U).sum(dim=2) * scales).sum(dim=1, keepdim=True)
        bounded = torch.maximum(captured, MIN_CAPTURED * energy).clamp_min(TINY)
        scales = torch.where(captured > 0, scales * energy / bounded, scales)
    return U, V * signs(scales)[:, :, None], scales.abs()


@cache
def probes(size: int, rank: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(p, size) of +-1, fixed: codes must not depend on the other examples of the batch or on the worker."""
    count = _probe_count(rank)
    return torch.from_numpy(rademacher_signs(count, size, 0, f"probes/{size}x{count}")).to(device, dtype)


def _leading_factors(
    product: WhitenedProduct, sketch_Npd: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (N, c, d1) and (N, c, d2) of G's leading part, rotated to its singular directions."""
    basis = _orthonormal(sketch_Npd)
    image = product.left(basis)
    _, vectors = torch.linalg.eigh(_gram(image))
    leading = vectors[:, :, -rank:].flip(2)  # eigenvalues of eigh ascend
    # eigh returns eigenvectors with an arbitrary sign; codes must not depend on it
    largest = leading.gather(1, leading.abs().argmax(dim=1, keepdim=True))
    rotation = (leading * torch.where(largest < 0, -1.0, 1.0).to(leading)).transpose(1, 2)
    return rotation @ basis, rotation @ image


def _orthonormal(x_Npd: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the rows by Cholesky QR; rows that depend on earlier ones become almost zero."""
    gram = _gram(x_Npd)
    return torch.linalg.solve_triangular(_cholesky(gram), x_Npd, upper=False)


def _best_signs(
    seen_Ncn: torch.Tensor, x_Ncn: torch.Tensor, other_Ncm: torch.Tensor, scales_Nc: torch.Tensor
) -> torch.Tensor:
    """x after each row in turn was set to the signs with the smallest residual of G; `seen` is G times `other`."""
    x = x_Ncn.clone()
    overlap_Ncc = _gram(other_Ncm) * scales_Nc[:, None, :]
    for k in range(x.shape[1]):
        others = overlap_Ncc[:, k : k + 1].clone()
        others[:, 0, k] = 0.0
        residual = seen_Ncn[:, k] - (others @ x)[:, 0]
        x[:, k] = signs(residual * signs(scales_Nc[:, k : k + 1]))
    return x


def _joint_scales(seen_Ncn: torch.Tensor, x_Ncn: torch.Tensor, other_Ncm: torch.Tensor) -> torch.Tensor:
    """(N, c) least-squares scales of all terms jointly; `seen` is G (or G^T) times the other side."""
    overlap_Ncc = _gram(x_Ncn) * _gram(other_Ncm)
    rhs = (seen_Ncn * x_Ncn).sum(dim=2, keepdim=True)
    return torch.cholesky_solve(rhs, _cholesky(overlap_Ncc))[:, :, 0]


def _gram(x_Npd: torch.Tensor) -> torch.Tensor:
    return x_Npd @ x_Npd.transpose(1, 2)


def _cholesky(gram_Npp: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of a Gram matrix plus a multiple of the identity, relative to its trace; or NaN.

    NaN, which the scales show, spares a GPU a transfer to the host to see that the factorisation succeeded.
    """
    ridge = (_RIDGE * gram_Npp.diagonal(dim1=1, dim2=2).sum(dim=1)).clamp_min(TINY)
    identity = torch.eye(gram_Npp.shape[1], device=gram_Npp.device, dtype=gram_Npp.dtype)
    factor, info = torch.linalg.cholesky_ex(gram_Npp + ridge[:, None, None] * identity)
    return torch.where(info[:, None, None] == 0, factor, torch.nan)
