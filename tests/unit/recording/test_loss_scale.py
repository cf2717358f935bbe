"""Invariant: the scale of a loss and the losses of examples follow from the gradient of the logits."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorif_core.recording.loss_scale import LARGEST_RESIDUAL, HeadWatch, returned_loss
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


def sure(margin: float, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (2, 9) and logits in which those of the targets are above the others by a margin."""
    torch.manual_seed(0)
    labels = torch.randint(0, vocabulary, (2, 9))
    labels[0, :3] = -100
    logits = torch.randn(2, 9, vocabulary)
    logits[:, :-1].scatter_add_(2, labels[:, 1:, None].clamp_min(0), torch.full((2, 8, 1), margin))
    return labels, logits.to(dtype).requires_grad_()


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(2,) token-summed losses."""
    by_class = logits[:, :-1].transpose(1, 2)
    losses = torch.nn.functional.cross_entropy(by_class, labels[:, 1:], ignore_index=-100, reduction="none")
    return losses.sum(1)


ROWS = Segments((2, 9), [(0, 0, 9), (1, 0, 9)])


@pytest.mark.parametrize("margin", [16.0, 20.0, 25.0, 30.0, 60.0, 80.0])
@pytest.mark.parametrize("vocabulary", [50, 32000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("told", [True, False])
def test_targets_that_the_model_is_sure_of_hide_no_factor(
    margin: float, vocabulary: int, dtype: torch.dtype, told: bool
) -> None:
    labels, logits = sure(margin, vocabulary, dtype)
    others = labels.clamp_min(0).flip(1)  # the targets need not be the tokens
    watch = HeadWatch(logits, labels.numpy() if told else None, ROWS, others.numpy())
    (gradient,) = torch.autograd.grad(1 / 7 * loss_of(logits.float(), labels).sum(), logits)
    measured = watch.measure(gradient)
    assert float(measured.inverse) == pytest.approx(7, rel=2e-3 if dtype == torch.float32 else 1e-2)
    assert not float(measured.residual) > LARGEST_RESIDUAL
    torch.testing.assert_close(
        measured.losses.double(), loss_of(logits.detach().double(), labels), rtol=1e-2, atol=1e-3
    )
    if not told:
        assert measured.labels is not None
        np.testing.assert_array_equal(measured.labels[:, 1:], labels[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gradient_of_zero_has_the_factor_of_the_returned_loss(dtype: torch.dtype) -> None:
    labels, logits = sure(150.0, 50, dtype)
    watch = HeadWatch(logits, labels.numpy(), ROWS, labels.clamp_min(0).numpy())
    loss = loss_of(logits.float(), labels).sum() / 14
    (gradient,) = torch.autograd.grad(loss, logits)
    unknown = watch.measure(gradient)
    assert torch.isnan(unknown.inverse) and torch.isnan(unknown.losses).all() and torch.isnan(unknown.residual)
    returned = returned_loss(loss, labels.numpy().copy(), None, ROWS).measure(torch.tensor(1.0))
    known = watch.measure(gradient, returned)
    assert float(known.inverse) == 14 and not known.losses.any() and torch.isnan(known.residual)


def test_logits_may_have_moved_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_one_device(*tensors: torch.Tensor) -> bool:
        return len({(tensor.device, tensor.dtype, tensor.shape) for tensor in tensors}) == 1

    ids = np.zeros((2, 9), np.int64)
    watch = HeadWatch(torch.zeros(2, 9, 50), ids, ROWS, ids)
    monkeypatch.setattr(torch, "equal", on_one_device)
    with FakeTensorMode():  # its tensors have a device, and no numbers
        watch._places = tuple(torch.zeros(8, dtype=torch.int64, device="cuda") for _ in range(2))
        watch._logits_KV = torch.zeros(8, 50, dtype=torch.float64, device="cuda")
        assert watch.has_seen(torch.zeros(2, 9, 50, device="cpu"))


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
