"""Invariant: the loss without autograd equals cross-entropy with autograd in value and gradient, for any chunk."""

import pytest
import torch

from lorif_core.model import loss
from lorif_core.model.loss import head_loss, losses_by_token, other_head_loss, token_losses


def by_token(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(2, B, T) losses of the tokens and of the likeliest ones in their places, token by token."""
    expected = torch.full((2, *labels_BT.shape), float("nan"), dtype=torch.float64)
    for b, t in torch.nonzero(labels_BT[:, 1:] != -100).tolist():
        losses_V = -torch.log_softmax(logits_BTV[b, t].detach(), 0)
        expected[:, b, t + 1] = torch.stack([losses_V[labels_BT[b, t + 1]], losses_V.min()])
    return expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 4 * 11 * 3, 2**25])
def test_loss_and_gradient_equal_autograd(bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(5, 11, bias=bias, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :4], labels[2] = -100, -100
    expected = token_losses(head(hidden), labels)
    (gradient,) = torch.autograd.grad(expected.sum(), hidden)
    result = head_loss(hidden.detach(), head.weight.detach(), head.bias.detach() if bias else None, labels)
    by_autograd = other_head_loss(hidden.detach(), head, 11, labels)
    for actual in (result, by_autograd):
        torch.testing.assert_close(actual.losses, expected)
        torch.testing.assert_close(actual.hidden_grad, gradient)
        assert actual.losses[2] == 0 and not actual.hidden_grad[2].any()
        torch.testing.assert_close(actual.by_token, by_token(head(hidden), labels), equal_nan=True)
    torch.testing.assert_close(
        losses_by_token(head(hidden), labels), by_token(head(hidden), labels), equal_nan=True
    )


def test_logits_may_have_another_dtype_than_hidden_states() -> None:
    """Some models in float64 return logits in float32."""
    hidden, head = torch.randn(2, 3, 5, dtype=torch.float64), torch.nn.Linear(5, 11)
    labels = torch.randint(0, 11, (2, 3))
    result = other_head_loss(hidden, lambda x: head(x.float()), 11, labels)
    torch.testing.assert_close(result.losses, token_losses(head(hidden.float()), labels).double())
    assert result.hidden_grad.dtype == torch.float64
