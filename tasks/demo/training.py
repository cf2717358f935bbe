"""The demo's training loop: Muon and AdamW on one thread, for a number of seconds or steps."""

import math
import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from lorif_core.errors import LorifError

_TOKENS_PER_BATCH = 1024
_ADAM_RATE, _MUON_RATE = 4e-3, 2e-2
_WARMUP_SHARE = 0.05
_PADDING = 0

Encoded = list[int]


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a run: `seconds` of wall clock, or exactly `steps` steps if they are given.

    Raises:
        ValueError: one of them is not positive.
    """

    seconds: float
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0 or (self.steps is not None and self.steps <= 0):
            raise ValueError(f"seconds and steps must be positive, not {self.seconds} and {self.steps}")

    def progress(self, elapsed: float, taken: int) -> float:
        """The finished share of the run after some seconds and steps; 1 is its end."""
        return elapsed / self.seconds if self.steps is None else taken / self.steps


@dataclass(frozen=True, slots=True)
class Trained:
    """The tokens and seconds of a run, and the learning rate of each of its steps, relative to the peak."""

    rates: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rates)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: with small products, several threads take a tenth of the steps on a busy machine
    and gain less than half on an idle one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit(model: GPT2LMHeadModel, encoded: Sequence[Encoded], length: Length, seed: int, rate: float) -> Trained:
    """Train on the texts, epoch after epoch, in random orders.

    Args:
        model: trained in place.
        encoded: texts of at least two tokens.
        length: length of the run.
        seed: seed of the orders.
        rate: learning rates, relative to those for training from scratch.

    Raises:
        LorifError: the training diverged.
    """
    batches = _endless_batches(encoded, random.Random(seed))
    optimizers = _optimizers(model, rate)
    rates: list[float] = []
    tokens, begin = 0, time.monotonic()
    while (now := length.progress(time.monotonic() - begin, len(rates))) < 1:
        batch = next(batches)
        rates.append(_schedule(now))
        _step(model, optimizers, batch, rates[-1])
        tokens += sum(map(len, batch))
    return Trained(tuple(rates), tokens, time.monotonic() - begin)


@_one_thread()
def fit_again(
    model: GPT2LMHeadModel,
    encoded: Sequence[Encoded],
    rates: Sequence[float],
    seed: int,
    rate: float,
    left_out: Collection[tuple[int, ...]],
) -> None:
    """Repeat a run of `fit`: the same batches at the same learning rates, without some of the texts.

    Nothing else changes, so with nothing left out the model ends with the same weights.

    Args:
        model: the model as it was before the run; trained in place.
        encoded: the texts of the run, in the same order.
        rates: the learning rates of the run.
        seed: the seed of the run.
        rate: the `rate` of the run.
        left_out: the texts to leave out, as tokens.

    Raises:
        LorifError: the training diverged.
    """
    optimizers = _optimizers(model, rate)
    for schedule, batch in zip(rates, _endless_batches(encoded, random.Random(seed)), strict=False):
        remaining = [ids for ids in batch if tuple(ids) not in left_out]
        if remaining:
            _step(model, optimizers, remaining, schedule)


def _endless_batches(encoded: Sequence[Encoded], source: random.Random) -> Iterator[list[Encoded]]:
    """Epoch after epoch in a new order; a batch has texts of similar length, so that there is little padding."""
    while True:
        shuffled = source.sample(encoded, len(encoded))
        batches = list(_by_length(shuffled))
        source.shuffle(batches)
        yield from batches


def _by_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Batches of at most `_TOKENS_PER_BATCH` tokens after padding; texts of equal length keep their order."""
    batch: list[Encoded] = []
    for ids in sorted(encoded, key=len):
        if batch and (len(batch) + 1) * len(ids) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _optimizers(model: GPT2LMHeadModel, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the layers and AdamW for the rest, each with `rate` times its peak learning rate.

    A minute on two cores allows only a few hundred steps; AdamW alone would end at a much higher loss.
    """
    matrices = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        (torch.optim.Muon(matrices, weight_decay=0.01), rate * _MUON_RATE),
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01), rate * _ADAM_RATE),
    ]


def _step(
    model: GPT2LMHeadModel,
    optimizers: list[tuple[torch.optim.Optimizer, float]],
    batch: list[Encoded],
    schedule: float,
) -> None:
    """One update with `schedule` times the peak learning rates."""
    loss = _batch_loss(model, batch)
    if not math.isfinite(loss.item()):
        raise LorifError("the demo model's training diverged: the loss is not finite")
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = schedule * peak
        optimizer.step()


def _schedule(progress: float) -> float:
    """Learning rate relative to its peak: linear warm-up, then a cosine to zero; `progress` is from 0 to 1."""
    if progress < _WARMUP_SHARE:
        return (progress + 0.01) / (_WARMUP_SHARE + 0.01)
    decayed = (progress - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)
    return 0.5 * (1 + math.cos(math.pi * decayed))


def _batch_loss(model: GPT2LMHeadModel, batch: list[Encoded]) -> torch.Tensor:
    """Mean loss over the predicted tokens; padding is on the right, so causal attention never reads it."""
    width = max(map(len, batch))
    ids_BT = torch.tensor([ids + [_PADDING] * (width - len(ids)) for ids in batch])
    next_BT = ids_BT[:, 1:]
    predicted_BT = torch.tensor([[t < len(ids) for t in range(1, width)] for ids in batch])
    hidden_BTd = model.transformer(input_ids=ids_BT[:, :-1]).last_hidden_state
    logits_NV = model.lm_head(hidden_BTd[predicted_BT])  # the head is the most expensive layer, so skip padding
    return torch.nn.functional.cross_entropy(logits_NV, next_BT[predicted_BT])


@_one_thread()
@torch.no_grad()
def mean_loss(model: GPT2LMHeadModel, encoded: Sequence[Encoded]) -> float:
    """Mean loss over the predicted tokens of the texts."""
    model.eval()
    predicted = [(sum(len(ids) - 1 for ids in batch), batch) for batch in _by_length(encoded)]
    total = sum(count * _batch_loss(model, batch).item() for count, batch in predicted)
    return total / sum(count for count, _ in predicted)
