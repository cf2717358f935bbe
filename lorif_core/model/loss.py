"""The token-summed loss and its gradient at the last hidden state, without autograd and in chunks of logits.

Shapes: B batch, T tokens, H hidden, V vocabulary. Labels are aligned with the input ids and -100 where a token
has no loss; token t is predicted from the hidden state at t-1.
"""

from dataclasses import dataclass

import torch

from lorif_core.spec import MASKED

_LOGITS_PER_CHUNK = 32 * 2**20  # bounds the logits in memory for any B, T and V


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Token-summed losses (B,) float32 or float64, and the gradient of their sum (B, T, H) in the hidden dtype."""

    losses: torch.Tensor
    hidden_grad: torch.Tensor


def head_loss(
    hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, labels_BT: torch.Tensor
) -> HeadLoss:
    """Cross-entropy of a linear output head, summed over each example's scored tokens.

    The gradient is (softmax(logits) - onehot) @ weight. It is computed only at scored tokens and in chunks of
    tokens, so that peak memory does not grow with B x T x V.
    """
    batch, positions = torch.nonzero(labels_BT[:, 1:] != MASKED, as_tuple=True)
    wide = torch.float64 if hidden_BTH.dtype == torch.float64 else torch.float32
    losses_B = torch.zeros(hidden_BTH.shape[0], dtype=wide, device=hidden_BTH.device)
    grad_BTH = torch.zeros_like(hidden_BTH)
    rows = max(1, _LOGITS_PER_CHUNK // weight_VH.shape[0])
    for b, t in zip(batch.split(rows), positions.split(rows), strict=True):
        targets = labels_BT[b, t + 1]
        logits = torch.nn.functional.linear(hidden_BTH[b, t], weight_VH, bias_V).to(wide)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        losses_B.index_add_(0, b, -log_probabilities.gather(1, targets[:, None]).squeeze(1))
        residual = log_probabilities.exp_()
        residual[torch.arange(len(targets), device=targets.device), targets] -= 1.0
        grad_BTH[b, t] = residual.to(weight_VH.dtype) @ weight_VH
    return HeadLoss(losses_B, grad_BTH)


def token_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(B,) token-summed cross-entropy with autograd, for heads that are not a plain linear layer."""
    wide = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    losses = torch.nn.functional.cross_entropy(
        wide[:, :-1].transpose(1, 2), labels_BT[:, 1:], ignore_index=MASKED, reduction="none"
    )
    return losses.sum(dim=1)
