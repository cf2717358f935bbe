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

ChunkResult = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(N,) losses, (N,) losses of the likeliest tokens in the same places, and the gradient (N, H) of the sum of the
losses at the hidden states."""

ChunkLoss = Callable[[torch.Tensor, torch.Tensor], ChunkResult]
"""What (N, H) hidden states and (N,) targets lead to."""

TakeLosses = Callable[[torch.Tensor], None]
"""Gets losses by token, (2, B, T): of each token, and of the model's first choice in its place; else NaN."""


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Losses of a batch.

    Attributes:
        losses: (B,) summed over the tokens, float32 or float64.
        hidden_grad: (B, T, H) the gradient of their sum, in the hidden dtype.
        by_token: (2, B, T) as `TakeLosses` gets them, in the dtype of the losses.
    """

    losses: torch.Tensor
    hidden_grad: torch.Tensor
    by_token: torch.Tensor


def head_loss(
    hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, labels_BT: torch.Tensor
) -> HeadLoss:
    """Cross-entropy of a linear output head, summed over each example's scored tokens, without autograd.

    The gradient is (softmax(logits) - onehot) @ weight.
    """

    def chunk_loss(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> ChunkResult:
        scores = _wide(torch.nn.functional.linear(hidden_NH, weight_VH, bias_V))
        # in place, because a copy of the logits would take twice the memory, and time
        scores.sub_(scores.amax(dim=1, keepdim=True))
        target_scores = scores.gather(1, targets_N[:, None])
        total = scores.exp_().sum(dim=1, keepdim=True)
        first_choice = total.log()  # the loss of the largest score, which is 0 now
        losses = first_choice - target_scores
        residual = scores.div_(total)
        residual.scatter_add_(1, targets_N[:, None], residual.new_full((len(targets_N), 1), -1.0))
        return losses.squeeze(1), first_choice.squeeze(1), residual.to(weight_VH.dtype) @ weight_VH

    return _chunked(hidden_BTH, labels_BT, _CHUNK_BYTES // 4 // len(weight_VH), chunk_loss)


def other_head_loss(
    hidden_BTH: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    vocabulary: int,
    labels_BT: torch.Tensor,
) -> HeadLoss:
    """Like `head_loss`, of a head that is any function of single tokens: `logits_of` maps (N, H) to (N, V)."""

    def chunk_loss(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> ChunkResult:
        hidden_NH = hidden_NH.requires_grad_()
        logits = _wide(logits_of(hidden_NH))
        losses = torch.nn.functional.cross_entropy(logits, targets_N, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), hidden_NH)
        return losses.detach(), _first_choice(losses.detach(), logits.detach(), targets_N), gradient

    rows = _CHUNK_BYTES // 4 // _AUTOGRAD_COPIES // vocabulary
    with torch.enable_grad():
        return _chunked(hidden_BTH, labels_BT, rows, chunk_loss)


def _chunked(hidden_BTH: torch.Tensor, labels_BT: torch.Tensor, rows: int, chunk_loss: ChunkLoss) -> HeadLoss:
    """The loss of the scored tokens, `rows` at a time; labels on the CPU spare a GPU a transfer to the host."""
    batch, positions = torch.nonzero(labels_BT[:, 1:] != MASKED, as_tuple=True)
    scored = torch.stack([batch, positions, labels_BT[:, 1:][batch, positions]])
    wide = torch.float64 if hidden_BTH.dtype == torch.float64 else torch.float32
    losses_B = torch.zeros(hidden_BTH.shape[0], dtype=wide, device=hidden_BTH.device)
    by_token_2BT = torch.full((2, *labels_BT.shape), float("nan"), dtype=wide, device=hidden_BTH.device)
    grad_BTH = torch.zeros_like(hidden_BTH)
    for b, t, targets in to_device(scored, hidden_BTH.device).split(max(1, rows), dim=1):
        losses, first_choice, grad_BTH[b, t] = chunk_loss(hidden_BTH[b, t], targets)
        losses_B.index_add_(0, b, losses.to(wide))  # a head may have logits of fewer digits
        by_token_2BT[:, b, t + 1] = torch.stack([losses, first_choice]).to(wide)
    return HeadLoss(losses_B, grad_BTH, by_token_2BT)


def token_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(B,) token-summed cross-entropy with autograd, from all logits."""
    losses = torch.nn.functional.cross_entropy(
        _wide(logits_BTV)[:, :-1].transpose(1, 2), labels_BT[:, 1:], ignore_index=MASKED, reduction="none"
    )
    return losses.sum(dim=1)


@torch.no_grad()
def losses_by_token(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(2, B, T) losses as `TakeLosses` gets them, from all logits."""
    b, t = torch.nonzero(labels_BT[:, 1:] != MASKED, as_tuple=True)
    logits_NV, targets_N = _wide(logits_BTV[b, t]), labels_BT[b, t + 1]
    losses_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    by_token_2BT = torch.full((2, *labels_BT.shape), float("nan"), dtype=losses_N.dtype, device=losses_N.device)
    by_token_2BT[:, b, t + 1] = torch.stack([losses_N, _first_choice(losses_N, logits_NV, targets_N)])
    return by_token_2BT


def _first_choice(losses_N: torch.Tensor, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """(N,) the losses of the likeliest tokens, given those of the targets."""
    return losses_N - (logits_NV.amax(dim=1) - logits_NV.gather(1, targets_N[:, None])[:, 0])


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
