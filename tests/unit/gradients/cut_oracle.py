"""The search for sign matrices of the first release: 16 rounds of power iteration on the formed G, three sweeps.

It captures more energy than the search of the product, at several times its cost, and serves as its reference.
"""

import torch

from lorif_core.gradients.low_rank import low_rank_factors
from lorif_core.gradients.quantisation import signs

_SWEEPS = 3
_RIDGE = 1e-5


def oracle_factors(
    A_BTd: torch.Tensor, E_BTd: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs U (B, d1, c) and V (B, d2, c), and scales (B, c), with sum_k s_k u_k v_k^T ~ A^T E."""
    G = A_BTd.transpose(1, 2) @ E_BTd
    U, V = (signs(factor) for factor in low_rank_factors(A_BTd, E_BTd, rank))
    product = G @ V
    scales = _joint_scales(product, U, V)
    for _ in range(_SWEEPS):
        U = _best_signs(product, U, V, scales)
        product = G.transpose(1, 2) @ U
        scales = _joint_scales(product, V, U)
        V = _best_signs(product, V, U, scales)
        product = G @ V
        scales = _joint_scales(product, U, V)
    return U, V * signs(scales)[:, None], scales.abs()


def _best_signs(
    product_Bnc: torch.Tensor, x_Bnc: torch.Tensor, other_Bmc: torch.Tensor, scales_Bc: torch.Tensor
) -> torch.Tensor:
    x = x_Bnc.clone()
    overlap_Bcc = scales_Bc[:, :, None] * (other_Bmc.transpose(1, 2) @ other_Bmc)
    for k in range(x.shape[2]):
        residual = (
            product_Bnc[:, :, k]
            - (x @ overlap_Bcc[:, :, k : k + 1])[:, :, 0]
            + x[:, :, k] * overlap_Bcc[:, k, k : k + 1]
        )
        x[:, :, k] = signs(residual * signs(scales_Bc[:, k : k + 1]))
    return x


def _joint_scales(product_Bnc: torch.Tensor, x_Bnc: torch.Tensor, other_Bmc: torch.Tensor) -> torch.Tensor:
    gram_Bcc = (x_Bnc.transpose(1, 2) @ x_Bnc) * (other_Bmc.transpose(1, 2) @ other_Bmc)
    size = x_Bnc.shape[1] * other_Bmc.shape[1]
    ridge = _RIDGE * size * torch.eye(gram_Bcc.shape[2]).to(gram_Bcc)
    return torch.linalg.solve(gram_Bcc + ridge, (x_Bnc * product_Bnc).sum(dim=1))
