"""The demo's model: a tokenizer and a small GPT-2, trained from nothing on the demo's own corpus."""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lorif_core.errors import LorifError

VOCABULARY = 4096
POSITIONS = 256
_WIDTH, _LAYERS, _HEADS = 128, 4, 4
_TOKENS_PER_BATCH = 1024
_ADAM_RATE, _MUON_RATE = 4e-3, 2e-2
_WARMUP_SHARE = 0.05
_END = "<|endoftext|>"
_PADDING = 0

Encoded = list[int]


@dataclass(frozen=True, slots=True)
class DemoModel:
    """What was trained. Losses are nats per predicted token over all training texts.

    `unigram_loss` is what the best predictor that ignores context would reach on the same tokens.
    """

    folder: Path
    parameters: int
    steps: int
    epochs: float
    seconds: float
    final_loss: float
    unigram_loss: float


def train_demo_model(
    texts: Sequence[str],
    folder: Path,
    seconds: float = 60.0,
    seed: int = 0,
    steps: int | None = None,
) -> DemoModel:
    """Train on `texts` and save weights (safetensors) and tokenizer into `folder`.

    The length of the run is `seconds` of wall clock, so a faster or idler machine takes more steps and gets
    another model: runs aren't reproducible bit by bit, even with equal seeds. With `steps` the run is exactly
    that long, whatever the clock says, and repeatable on one machine.
    A text is trained on exactly as it is indexed: its own tokens, cut at `POSITIONS`, nothing added.

    Args:

    Raises:
        ValueError: `seconds` or `steps` isn't positive.
        LorifError: no text has two tokens or more, or the training diverged.
    """
    if seconds <= 0 or (steps is not None and steps <= 0):
        raise ValueError(f"seconds and steps must be positive, not {seconds} and {steps}")
    tokenizer = _train_tokenizer(texts)
    encoded = [ids for ids in tokenizer(list(texts), truncation=True)["input_ids"] if len(ids) > 1]
    if not encoded:
        raise LorifError("the demo model cannot be trained: no text has two tokens or more")
    model = _new_model(len(tokenizer), tokenizer.eos_token_id, seed)
    begin = time.monotonic()

    def progress(taken: int) -> float:
        return (time.monotonic() - begin) / seconds if steps is None else taken / steps

    with _one_thread():
        taken, tokens_seen = _fit(model, _endless_batches(encoded, random.Random(seed)), progress)
        elapsed = time.monotonic() - begin
        final_loss = _mean_loss(model, encoded)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return DemoModel(
        folder=folder,
        parameters=model.num_parameters(),
        steps=taken,
        epochs=tokens_seen / sum(map(len, encoded)),
        seconds=elapsed,
        final_loss=final_loss,
        unigram_loss=_unigram_loss(encoded),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: threads that wait for one another at every small product collapse on a busy
    machine (a tenth of the steps), and bring less than half as much again on an idle one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    model: GPT2LMHeadModel,
    batches: Iterator[list[Encoded]],
    progress: Callable[[int], float],
) -> tuple[int, int]:
    """Train until `progress(steps taken)` reaches 1; returns the numbers of steps and of tokens seen."""
    optimizers = _optimizers(model)
    taken, tokens_seen = 0, 0
    while (now := progress(taken)) < 1:
        batch = next(batches)
        _step(model, optimizers, batch, _schedule(now))
        taken += 1
        tokens_seen += sum(map(len, batch))
    return taken, tokens_seen


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be encoded, and decoding gives it back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        bos_token=_END,
        pad_token=_END,
        model_max_length=POSITIONS,
    )


def _new_model(vocabulary: int, end: int, seed: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=POSITIONS, n_embd=_WIDTH, n_layer=_LAYERS, n_head=_HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def _endless_batches(encoded: Sequence[Encoded], source: random.Random) -> Iterator[list[Encoded]]:
    """Epoch after epoch in a new order, texts of similar length together so that little padding is computed."""
    while True:
        shuffled = source.sample(encoded, len(encoded))
        batches = list(_by_length(shuffled))
        source.shuffle(batches)
        yield from batches


def _by_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Batches of at most `_TOKENS_PER_BATCH` tokens after padding; ties keep the order given."""
    batch: list[Encoded] = []
    for ids in sorted(encoded, key=len):
        if batch and (len(batch) + 1) * len(ids) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _optimizers(model: GPT2LMHeadModel) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, AdamW for the rest, each with its peak learning rate.

    A minute on two cores is only a few hundred steps; with AdamW alone they end at a much higher loss.
    """
    matrices = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        (torch.optim.Muon(matrices, weight_decay=0.01), _MUON_RATE),
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.01), _ADAM_RATE),
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
    """Share of the peak learning rate: linear warm-up, then a cosine to zero; `progress` runs from 0 to 1."""
    if progress < _WARMUP_SHARE:
        return (progress + 0.01) / (_WARMUP_SHARE + 0.01)
    decayed = (progress - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)
    return 0.5 * (1 + math.cos(math.pi * decayed))


def _batch_loss(model: GPT2LMHeadModel, batch: list[Encoded]) -> torch.Tensor:
    """Mean over the batch's predicted tokens; padding is on the right, so causal attention never reads it."""
    width = max(map(len, batch))
    ids_BT = torch.tensor([ids + [_PADDING] * (width - len(ids)) for ids in batch])
    next_BT = ids_BT[:, 1:]
    predicted_BT = torch.tensor([[t < len(ids) for t in range(1, width)] for ids in batch])
    hidden_BTd = model.transformer(input_ids=ids_BT[:, :-1]).last_hidden_state
    logits_NV = model.lm_head(hidden_BTd[predicted_BT])  # the head is the costliest layer: none of it for padding
    return torch.nn.functional.cross_entropy(logits_NV, next_BT[predicted_BT])


@torch.no_grad()
def _mean_loss(model: GPT2LMHeadModel, encoded: Sequence[Encoded]) -> float:
    model.eval()
    predicted = [(sum(len(ids) - 1 for ids in batch), batch) for batch in _by_length(encoded)]
    total = sum(count * _batch_loss(model, batch).item() for count, batch in predicted)
    return total / sum(count for count, _ in predicted)


def _unigram_loss(encoded: Sequence[Encoded]) -> float:
    """Entropy of the frequencies of the predicted tokens (every token of a text but its first)."""
    counts = Counter(itertools.chain.from_iterable(ids[1:] for ids in encoded))
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())
