"""What a loss was divided and multiplied by on its way, measured at the output head, and the examples' losses.

The gradient of the token-summed cross-entropy at the logits z of a token with target y is softmax(z) - onehot(y).
A mean over tokens, gradient accumulation, loss scaling and several processes multiply this r by an s of the batch.
s is the least-squares fit over the logits of a few tokens; what the fit leaves tells another loss. At a target
with p near 1 the gradient is only rounding, so the fit uses the other logits of such a token, and nothing is told.

Shapes: B rows, T tokens, V vocabulary, K tokens that are looked at.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.recording.segments import Segments
from lorif_core.spec import MASKED

LARGEST_RESIDUAL = 1e-3
"""Share of the gradient's energy that another loss leaves at least; rounding to bfloat16 leaves 1e-5."""
_TOKENS = 8
_UNTOLD_TOKENS = 64  # where it is not known which tokens have a loss
_REFERENCES = 16  # tokens of the vocabulary, of which the likeliest stands for all
_LEAST_PROBABILITY = 1e-30
_LEAST_DOUBT = 4 * torch.finfo(torch.float32).eps
"""Times V, the least 1 - p that is precise: a sum of V terms in float32 loses those that are far below its 1."""
_PRECISE = 64
"""A gradient that is not much larger than the smallest number of its type has only a few bits."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """A measured scale.

    Attributes:
        inverse: 1 / s, a float32 scalar on the device of the logits.
        residual: share of the gradient's energy that is not s r, a float32 scalar; NaN where that cannot be told.
        losses: (S,) float32, token-summed losses of the examples.
        labels: (B, T) int64 targets, if the forward pass did not get them.
    """

    inverse: torch.Tensor
    residual: torch.Tensor
    losses: torch.Tensor
    labels: torch.Tensor | None


class HeadWatch:
    """Keeps the logits of a few tokens of a forward pass until their gradient comes.

    Args:
        logits_BTV: outputs of the head.
        labels_BT: targets on the host, aligned with the tokens; None if the forward pass has none.
        segments: the examples of the batch.
        ids_BT: the tokens, which are the targets most likely if the forward pass has none.
    """

    def __init__(
        self, logits_BTV: torch.Tensor, labels_BT: np.ndarray | None, segments: Segments, ids_BT: np.ndarray
    ) -> None:
        self._labels_BT, self._segments = labels_BT, segments
        scored = np.ones((logits_BTV.shape[0], logits_BTV.shape[1] - 1), bool)
        if labels_BT is not None:
            scored = labels_BT[:, 1:] != MASKED
        places = np.argwhere(scored)
        count = min(_TOKENS if labels_BT is not None else _UNTOLD_TOKENS, len(places))
        chosen = places[np.linspace(0, len(places) - 1, count).astype(int)]
        self._places = torch.from_numpy(chosen).to(logits_BTV.device).unbind(1)
        logits_BTV = logits_BTV.detach()
        self._logits_KV = logits_BTV[self._places].double()
        likely = torch.from_numpy(ids_BT if labels_BT is None else labels_BT).to(logits_BTV.device)
        self._likely_BT = likely[:, 1:].clamp_min(0)
        self._predicted_BT = None if labels_BT is not None else logits_BTV[:, :-1].argmax(dim=2)
        self._keep_references(logits_BTV)

    def has_seen(self, logits_BTV: torch.Tensor) -> bool:
        """Whether these logits are the outputs of the head; accelerate may have moved them to another GPU."""
        b, t = (place.to(logits_BTV.device) for place in self._places)
        return torch.equal(logits_BTV.detach()[b, t].to(self._logits_KV), self._logits_KV)

    def _keep_references(self, logits_BTV: torch.Tensor) -> None:
        """How far the logit of the target is above that of a token whose gradient has full precision."""
        references = torch.linspace(0, logits_BTV.shape[2] - 1, _REFERENCES, device=logits_BTV.device).long()
        at_references = logits_BTV[:, :-1, references].float()
        is_target = references == self._likely_BT[:, :, None]
        best, places = at_references.masked_fill(is_target, -torch.inf).max(dim=2)
        self._reference_BT = references[places]
        self._above_BT = logits_BTV[:, :-1].gather(2, self._likely_BT[:, :, None])[:, :, 0].float() - best

    def measure(self, grad: torch.Tensor, returned: LossScale | None = None) -> LossScale:
        """The scale of the gradient of the logits, and what follows from it.

        Args:
            grad: the gradient of the logits.
            returned: the scale by the loss that the model returned, for a gradient that is zero or nearly so.
                Without it the scale and the losses of such a gradient are NaN.
        """
        grad_BTV = grad.reshape(*self._segments.shape, -1)
        labels_BT = self._targets(grad_BTV)
        b, t = self._places
        grad_KV = grad_BTV[b, t].double()
        expected_KV = self._logits_KV.softmax(dim=1)
        targets_K1 = labels_BT[b, t + 1][:, None]
        is_scored_K1, targets_K1 = targets_K1 != MASKED, targets_K1.clamp_min(0)
        expected_KV = expected_KV.scatter_add(1, targets_K1, torch.full_like(expected_KV[:, :1], -1.0))
        expected_KV = torch.where(is_scored_K1, expected_KV, 0.0)
        doubted_K1 = expected_KV.gather(1, targets_K1) < -_LEAST_DOUBT * expected_KV.shape[1]
        weight_KV = torch.ones_like(expected_KV).scatter(1, targets_K1, doubted_K1.double())
        fitted = _fitted(grad_KV, weight_KV * expected_KV, grad.dtype)
        left_KV = torch.where(doubted_K1, grad_KV - fitted * expected_KV, 0.0)
        residual = left_KV.square().sum() / torch.where(doubted_K1, grad_KV, 0.0).square().sum()
        otherwise = torch.full_like(fitted, torch.nan) if returned is None else 1 / returned.inverse.to(fitted)
        scale = torch.where(torch.isfinite(fitted), fitted, otherwise)
        losses = self._losses(grad_BTV, labels_BT, scale)
        inferred = labels_BT if self._labels_BT is None else None
        return LossScale((1 / scale).float(), residual.float(), losses, inferred)

    def _targets(self, grad_BTV: torch.Tensor) -> torch.Tensor:
        """(B, T) targets. Those that the forward pass did not get have the only negative gradient.

        At p = 1 it is rounded to 0, and such a target is the token that the model predicts.
        """
        if self._predicted_BT is None:
            return torch.from_numpy(self._labels_BT).to(grad_BTV.device)
        least, targets = grad_BTV[:, :-1].min(dim=2)
        is_scored = (least < 0) | (grad_BTV[:, :-1].amax(dim=2) > 0)
        labels = torch.full(grad_BTV.shape[:2], MASKED, dtype=torch.int64, device=grad_BTV.device)
        labels[:, 1:] = torch.where(is_scored, torch.where(least < 0, targets, self._predicted_BT), MASKED)
        return labels

    def _losses(self, grad_BTV: torch.Tensor, labels_BT: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(S,) losses. The gradient s (p - 1) at the target tells p, but only roughly where p is small.

        There the gradient at another token is s p, and p at the target is above it by their logits, if the target
        is the likely one.
        """
        targets = labels_BT[:, 1:]
        at_reference, at_target = (
            grad_BTV[:, :-1].gather(2, tokens[:, :, None])[:, :, 0].double() / scale
            for tokens in (self._reference_BT, targets.clamp_min(0))
        )
        by_token = -(1 + at_target).clamp(_LEAST_PROBABILITY, 1.0).log()
        by_reference = -(at_reference.clamp_min(_LEAST_PROBABILITY).log() + self._above_BT)
        is_improbable = (targets == self._likely_BT) & (at_target < -0.5)
        by_token = torch.where(is_improbable, by_reference, by_token)
        return _by_example(torch.where(targets != MASKED, by_token, 0.0), self._segments)


def _fitted(grad_KV: torch.Tensor, expected_KV: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The s of grad = s expected by least squares over the precise entries of a gradient that had a dtype.

    NaN if there are none.
    """
    kind = torch.finfo(dtype)
    is_precise_KV = grad_KV.abs() >= _PRECISE * kind.smallest_normal * kind.eps
    expected_KV = torch.where(is_precise_KV, expected_KV, 0.0)
    return (grad_KV * expected_KV).sum() / expected_KV.square().sum()


@dataclass(frozen=True, slots=True)
class LogProbs:
    """The log-probabilities of the targets, where a model returns them instead of logits, as under TRL's trainers.

    Attributes:
        values: (B, T - 1), of each token after the first.
        labels: targets, on the host.
        segments: the examples of the batch.
    """

    values: torch.Tensor
    labels: np.ndarray
    segments: Segments

    def measure(self, grad: torch.Tensor) -> LossScale:
        """The scale: the gradient at each scored token is -s."""
        is_scored = torch.from_numpy(self.labels[:, 1:] != MASKED).to(grad.device)
        grad = torch.where(is_scored, grad.double(), 0.0)
        scale = -grad.sum() / is_scored.sum()
        residual = torch.where(is_scored, grad + scale, 0.0).square().sum() / grad.square().sum()
        losses = _by_example(torch.where(is_scored, -self.values, 0.0), self.segments)
        return LossScale((1 / scale).float(), residual.float(), losses, None)


def _by_example(by_token: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(S,) sums of losses (B, T - 1), each of the token after its place."""
    by_token = torch.nn.functional.pad(by_token, (0, 1))[:, :, None]
    if segments.are_rows:
        return by_token.sum(dim=(1, 2)).float()
    return segments.split(by_token).sum(dim=(1, 2)).float()


@dataclass(frozen=True, slots=True)
class ReturnedLoss:
    """The loss that a model returned, where its head cannot be watched.

    Attributes:
        value: the loss.
        divisor: what the sum over the scored tokens of the batch was divided by.
        scored: (S,) scored tokens of the examples.
    """

    value: torch.Tensor
    divisor: torch.Tensor | float
    scored: np.ndarray

    def measure(self, upstream: torch.Tensor) -> LossScale:
        """The scale, from what backward multiplied the loss by; the loss of an example is its share by tokens."""
        shares = torch.from_numpy(self.scored / max(self.scored.sum(), 1)).to(upstream.device)
        losses = self.value.detach().double() * self.divisor * shares
        inverse = self.divisor / upstream.double()
        return LossScale(inverse.float(), torch.zeros_like(upstream), losses.float(), None)


def returned_loss(
    value: torch.Tensor, labels_BT: np.ndarray, items: torch.Tensor | float | None, segments: Segments
) -> ReturnedLoss:
    """See `ReturnedLoss`.

    Args:
        value: the loss.
        labels_BT: targets, on the host.
        items: `num_items_in_batch` of the forward pass, by which the sum was divided; None for a mean.
        segments: the examples of the batch.
    """
    is_scored = labels_BT != MASKED
    is_scored[:, 0] = False
    scored = np.array([is_scored[row, start + 1 : stop].sum() for row, start, stop in segments.bounds])
    divisor = float(is_scored.sum()) if items is None else items
    return ReturnedLoss(value, divisor, scored)
