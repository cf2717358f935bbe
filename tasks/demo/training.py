"""The demo's training loop: Muon and AdamW on one thread, for a number of epochs."""

import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from lorif_core.errors import LorifError
from lorif_core.spec import MASKED

_TOKENS_PER_BATCH, _ROWS_PER_BATCH = 1024, 12  # so that the short notes make as many steps as the long passages
_ADAM_RATE, _MUON_RATE = 4e-3, 2e-2
_WARMUP_SHARE = 0.05
_PADDING = 0

Encoded = list[int]


@dataclass(frozen=True, slots=True)
class Trained:
    """The steps of a run, and the seconds of each of its epochs."""

    steps: int
    epoch_seconds: tuple[float, ...]


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
def fit(
    model: GPT2LMHeadModel,
    encoded: Sequence[Encoded],
    epochs: int,
    seed: int,
    rate: float,
    left_out: Collection[tuple[int, ...]] = (),
    begin_epoch: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Train on the texts, each epoch in another random order.

    Runs with equal arguments end with equal weights. A run that leaves texts out has the same batches without
    them, at the same learning rates.

    Args:
        model: trained in place.
        encoded: texts of at least two tokens.
        epochs: passes over the texts.
        seed: seed of the orders.
        rate: learning rates, relative to those for training from scratch.
        left_out: texts to leave out, as tokens.
        begin_epoch: called with the number of each epoch, from 0, before it begins.

    Raises:
        LorifError: the training diverged.
    """
    model.train()
    optimizers, source = _optimizers(model, rate), random.Random(seed)
    steps = epochs * len(list(_by_length(encoded)))
    seconds, step = list[float](), 0
    for epoch in range(epochs):
        begin_epoch(epoch)
        begin = time.perf_counter()
        for batch in _shuffled_batches(encoded, source):
            remaining = [ids for ids in batch if tuple(ids) not in left_out]
            if remaining:
                _step(model, optimizers, remaining, _schedule(step / steps))
            step += 1
        seconds.append(time.perf_counter() - begin)
    return Trained(steps, tuple(seconds))


def _shuffled_batches(encoded: Sequence[Encoded], source: random.Random) -> list[list[Encoded]]:
    """An epoch in a new order; a batch has texts of similar length, so that there is little padding."""
    batches = list(_by_length(source.sample(encoded, len(encoded))))
    source.shuffle(batches)
    return batches


def _by_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Batches of `_ROWS_PER_BATCH` texts and `_TOKENS_PER_BATCH` tokens after padding at most.

    Texts of equal length keep their order.
    """
    batch: list[Encoded] = []
    for ids in sorted(encoded, key=len):
        if batch and (len(ids) * (len(batch) + 1) > _TOKENS_PER_BATCH or len(batch) == _ROWS_PER_BATCH):
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _optimizers(model: GPT2LMHeadModel, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the layers and AdamW for the rest, each with `rate` times its peak learning rate.

    The demo has time for a few hundred steps only; AdamW alone would end at a much higher loss.
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
    """Mean loss over the predicted tokens."""
    width = max(map(len, batch))
    ids_BT = torch.tensor([ids + [_PADDING] * (width - len(ids)) for ids in batch])
    mask_BT = torch.tensor([[t < len(ids) for t in range(width)] for ids in batch])
    labels_BT = ids_BT.masked_fill(~mask_BT, MASKED)
    loss: torch.Tensor = model(input_ids=ids_BT, attention_mask=mask_BT.long(), labels=labels_BT).loss
    return loss


@_one_thread()
@torch.no_grad()
def mean_loss(model: GPT2LMHeadModel, encoded: Sequence[Encoded]) -> float:
    """Mean loss over the predicted tokens of the texts."""
    model.eval()
    predicted = [(sum(len(ids) - 1 for ids in batch), batch) for batch in _by_length(encoded)]
    total = sum(count * _batch_loss(model, batch).item() for count, batch in predicted)
    return total / sum(count for count, _ in predicted)
