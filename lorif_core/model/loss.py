"""The token-summed loss and its gradient at the last hidden state, in chunks of logits.

Shapes: B batch, T tokens, N scored tokens of a chunk, H hidden, V vocabulary. Labels are aligned with the input
ids and -100 where a token has no loss; token t is predicted from the hidden state at t-1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorif_core.model.transfer import to_device
from lorif_core.spec import MASKED

_CHUNK_BYTES = 128 * 2**20  # of float32 logits, which bounds those in memory for any B, T and V
_AUTOGRAD_COPIES = 4  # of the logits, which autograd keeps where a head caps or scales them

ChunkLoss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(N, H) hidden states and (N,) targets -> (N,) losses, and the gradient (N, H) of their sum."""


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Token-summed losses (B,) float32 or float64, and the gradient of their sum (B, T, H) in the hidden dtype."""

    losses: torch.Tensor
    hidden_grad: torch.Tensor


def head_loss(
    hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, labels_BT: torch.Tensor
) -> HeadLoss:
    """Cross-entropy of a linear output head, summed over each example's scored tokens, without autograd.

    The gradient is (softmax(logits) - onehot) @ weight.
    """

    def chunk_loss(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _wide(torch.nn.functional.linear(hidden_NH, weight_VH, bias_V))
        # in place, because a copy of the logits would take twice the memory, and time
        scores.sub_(scores.amax(dim=1, keepdim=True))
        target_scores = scores.gather(1, targets_N[:, None])
        total = scores.exp_().sum(dim=1, keepdim=True)
        losses = (total.log() - target_scores).squeeze(1)
        residual = scores.div_(total)
        residual.scatter_add_(1, targets_N[:, None], residual.new_full((len(targets_N), 1), -1.0))
        return losses, residual.to(weight_VH.dtype) @ weight_VH

    return _chunked(hidden_BTH, labels_BT, _CHUNK_BYTES // 4 // len(weight_VH), chunk_loss)


def other_head_loss(
    hidden_BTH: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    vocabulary: int,
    labels_BT: torch.Tensor,
) -> HeadLoss:
    """Like `head_loss`, of a head that is any function of single tokens: `logits_of` maps (N, H) to (N, V)."""

    def chunk_loss(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_NH = hidden_NH.requires_grad_()
        losses = torch.nn.functional.cross_entropy(_wide(logits_of(hidden_NH)), targets_N, reduction="none")
        return losses.detach(), torch.autograd.grad(losses.sum(), hidden_NH)[0]

    rows = _CHUNK_BYTES // 4 // _AUTOGRAD_COPIES // vocabulary
    with torch.enable_grad():
        return _chunked(hidden_BTH, labels_BT, rows, chunk_loss)


def _chunked(hidden_BTH: torch.Tensor, labels_BT: torch.Tensor, rows: int, chunk_loss: ChunkLoss) -> HeadLoss:
    """The loss of the scored tokens, `rows` at a time; labels on the CPU spare a GPU a transfer to the host."""
    batch, positions = torch.nonzero(labels_BT[:, 1:] != MASKED, as_tuple=True)
    scored = torch.stack([batch, positions, labels_BT[:, 1:][batch, positions]])
    wide = torch.float64 if hidden_BTH.dtype == torch.float64 else torch.float32
    losses_B = torch.zeros(hidden_BTH.shape[0], dtype=wide, device=hidden_BTH.device)
    grad_BTH = torch.zeros_like(hidden_BTH)
    for b, t, targets in to_device(scored, hidden_BTH.device).split(max(1, rows), dim=1):
        losses, grad_BTH[b, t] = chunk_loss(hidden_BTH[b, t], targets)
        losses_B.index_add_(0, b, losses.to(wide))  # a head may have logits of fewer digits
    return HeadLoss(losses_B, grad_BTH)


def token_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(B,) token-summed cross-entropy with autograd, from all logits."""
    losses = torch.nn.functional.cross_entropy(
        _wide(logits_BTV)[:, :-1].transpose(1, 2), labels_BT[:, 1:], ignore_index=MASKED, reduction="none"
    )
    return losses.sum(dim=1)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
