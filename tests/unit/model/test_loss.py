"""Invariant: the loss without autograd equals cross-entropy with autograd in value and gradient, for any chunk."""

import pytest
import torch

from lorif_core.model import loss
from lorif_core.model.loss import head_loss, other_head_loss, token_losses


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


def test_logits_may_have_another_dtype_than_hidden_states() -> None:
    """Some models in float64 return logits in float32."""
    hidden, head = torch.randn(2, 3, 5, dtype=torch.float64), torch.nn.Linear(5, 11)
    labels = torch.randint(0, 11, (2, 3))
    result = other_head_loss(hidden, lambda x: head(x.float()), 11, labels)
    torch.testing.assert_close(result.losses, token_losses(head(hidden.float()), labels).double())
    assert result.hidden_grad.dtype == torch.float64
