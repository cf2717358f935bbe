"""Invariant: the scale of a loss and the losses of examples follow from the gradient of the logits."""

import numpy as np
import pytest
import torch

from lorif_core.recording.loss_scale import LARGEST_RESIDUAL, HeadWatch
from lorif_core.recording.segments import Segments


@pytest.mark.parametrize("scale", [1.0, 1 / 640, 65536.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("told", [True, False])
def test_any_factor_is_found(scale: float, dtype: torch.dtype, told: bool) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 50, (3, 9))
    labels[0, :4] = labels[2, 5:] = -100
    logits = (3 * torch.randn(3, 9, 50)).to(dtype).requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    ).sum(1)
    segments = Segments((3, 9), [(0, 0, 9), (1, 0, 9), (2, 0, 9)])
    watch = HeadWatch(logits, labels.numpy() if told else None, segments, labels.clamp_min(0).numpy())
    (gradient,) = torch.autograd.grad(scale * losses.sum(), logits)
    measured = watch.measure(gradient)
    exact = dtype == torch.float32
    assert float(measured.inverse) * scale == pytest.approx(1.0, rel=1e-5 if exact else 2e-3)
    assert float(measured.residual) < LARGEST_RESIDUAL / 10
    torch.testing.assert_close(measured.losses, losses.detach(), rtol=1e-4 if exact else 2e-3, atol=1e-3)
    if not told:
        assert measured.labels is not None
        np.testing.assert_array_equal(measured.labels[:, 1:], labels[:, 1:])


def test_another_loss_leaves_a_residual() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 20, requires_grad=True)
    labels = torch.randint(0, 20, (2, 5))
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.3
    )
    watch = HeadWatch(logits, labels.numpy(), Segments((2, 5), [(0, 0, 5), (1, 0, 5)]), labels.numpy())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(watch.measure(gradient).residual) > LARGEST_RESIDUAL
