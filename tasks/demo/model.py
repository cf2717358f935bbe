"""The demo's model: a tokenizer and a small GPT-2, trained from scratch on the demo's corpus, then further."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lorif_core.errors import LorifError
from tasks.demo.training import Encoded, fit, mean_loss

VOCABULARY = 2048
POSITIONS = 256
_WIDTH, _LAYERS, _HEADS = 128, 4, 4
_CONTINUED_RATE = 0.01  # relative to the learning rates of the first training
_END = "<|endoftext|>"

Recording = Callable[[GPT2LMHeadModel], AbstractContextManager[Callable[[int], None]]]
"""Records the training of a model within a context, which gives what each epoch begins with."""


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A trained model. Losses are nats per predicted token over all training texts.

    `unigram_loss` is the loss of the best predictor that ignores context, on the same tokens. `seed` is that of
    the first weights and of the orders of the texts.
    """

    folder: Path
    seed: int
    parameters: int
    steps: int
    epoch_seconds: tuple[float, ...]
    final_loss: float
    unigram_loss: float

    @property
    def epochs(self) -> int:
        """Passes over the texts."""
        return len(self.epoch_seconds)

    @property
    def seconds(self) -> float:
        """Duration of the training."""
        return sum(self.epoch_seconds)


def train_demo_model(texts: Sequence[str], folder: Path, epochs: int, seed: int = 0) -> DemoModel:
    """Train on `texts` and save weights (safetensors) and tokenizer into `folder`.

    Equal arguments give equal weights on one machine.
    Training and indexing use the same tokens of a text: its own tokens, cut at `POSITIONS`, with nothing added.

    Raises:
        ValueError: `epochs` is not positive.
        LorifError: no text has two tokens or more, or the training diverged.
    """
    tokenizer = _train_tokenizer(texts)
    model = _new_model(len(tokenizer), tokenizer.eos_token_id, seed)
    return _trained(model, tokenizer, texts, folder, epochs, seed, 1.0, lambda _: None)


def continue_demo_model(
    former: Path, texts: Sequence[str], folder: Path, epochs: int, recording: Recording, seed: int = 0
) -> DemoModel:
    """Train the model in the folder `former` further on `texts`, at a low learning rate; save it into `folder`.

    The tokenizer does not change. The model is saved within the context of the recording. Errors are those of
    `train_demo_model`.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(former)
    model = GPT2LMHeadModel.from_pretrained(former)
    with recording(model) as begin_epoch:
        return _trained(model, tokenizer, texts, folder, epochs, seed, _CONTINUED_RATE, begin_epoch)


def train_without(
    former: DemoModel, texts: Sequence[str], left_out: Collection[str], seed: int
) -> GPT2LMHeadModel:
    """Repeat `train_demo_model` without some of its texts, in memory; the tokenizer is the former one.

    With the former seed the first weights, batches and learning rates are the same too; with nothing left out, the
    model then has the weights of the former one.

    Raises:
        LorifError: the training diverged.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(former.folder)
    model = _new_model(len(tokenizer), tokenizer.eos_token_id, seed)
    removed = {tuple(ids) for ids in _tokens(tokenizer, list(left_out))}
    fit(model, _encoded(tokenizer, texts), former.epochs, seed, 1.0, removed)
    return model


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Encoded]:
    encoded: list[Encoded] = tokenizer(list(texts), truncation=True)["input_ids"] if texts else []
    return encoded


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Encoded]:
    """Token ids of the texts that have at least two tokens, one of them to predict."""
    encoded = [ids for ids in _tokens(tokenizer, texts) if len(ids) > 1]
    if not encoded:
        raise LorifError("the demo model cannot be trained: no text has two tokens or more")
    return encoded


def _trained(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    folder: Path,
    epochs: int,
    seed: int,
    rate: float,
    begin_epoch: Callable[[int], None],
) -> DemoModel:
    """Train the model, and save weights and tokenizer."""
    if epochs <= 0:
        raise ValueError(f"epochs must be positive, not {epochs}")
    encoded = _encoded(tokenizer, texts)
    trained = fit(model, encoded, epochs, seed, rate, begin_epoch=begin_epoch)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return DemoModel(
        folder=folder,
        seed=seed,
        parameters=model.num_parameters(),
        steps=trained.steps,
        epoch_seconds=trained.epoch_seconds,
        final_loss=mean_loss(model, encoded),
        unigram_loss=_unigram_loss(encoded),
    )


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, which can encode any text and decode it exactly."""
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


def _unigram_loss(encoded: Sequence[Encoded]) -> float:
    """Entropy of the frequencies of the predicted tokens (all tokens of a text except its first)."""
    counts = Counter(itertools.chain.from_iterable(ids[1:] for ids in encoded))
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())
