"""The demo's model: a tokenizer and a small GPT-2, trained from scratch on the demo's corpus, then further."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lorif_core.errors import LorifError
from tasks.demo.training import Encoded, Length, fit, fit_again, mean_loss

VOCABULARY = 4096
POSITIONS = 256
_WIDTH, _LAYERS, _HEADS = 128, 4, 4
_CONTINUED_RATE = 0.01  # relative to the learning rates of the first training
_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A trained model. Losses are nats per predicted token over all training texts.

    `unigram_loss` is the loss of the best predictor that ignores context, on the same tokens. `rates` are the
    learning rates of the steps, relative to the peak.
    """

    folder: Path
    parameters: int
    rates: tuple[float, ...]
    epochs: float
    seconds: float
    final_loss: float
    unigram_loss: float

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rates)


@dataclass(frozen=True, slots=True)
class Course:
    """How a model was trained: the first run and its texts, then the run that went on from it and its texts."""

    first: DemoModel
    first_texts: tuple[str, ...]
    further: DemoModel
    further_texts: tuple[str, ...]
    seed: int


def train_demo_model(
    texts: Sequence[str],
    folder: Path,
    seconds: float = 60.0,
    seed: int = 0,
    steps: int | None = None,
) -> DemoModel:
    """Train on `texts` and save weights (safetensors) and tokenizer into `folder`.

    The run takes `seconds` of wall clock. A faster machine takes more steps and gets another model, so runs are
    not reproducible bit by bit, even with equal seeds. With `steps` the run has exactly that many steps and is
    repeatable on one machine.
    Training and indexing use the same tokens of a text: its own tokens, cut at `POSITIONS`, with nothing added.

    Raises:
        ValueError: `seconds` or `steps` is not positive.
        LorifError: no text has two tokens or more, or the training diverged.
    """
    length = Length(seconds, steps)
    tokenizer = _train_tokenizer(texts)
    encoded = _encoded(tokenizer, texts)
    model = _new_model(len(tokenizer), tokenizer.eos_token_id, seed)
    return _trained(model, tokenizer, encoded, folder, length, seed, rate=1.0)


def continue_demo_model(
    former: Path,
    texts: Sequence[str],
    folder: Path,
    seconds: float = 30.0,
    seed: int = 0,
    steps: int | None = None,
) -> DemoModel:
    """Train the model in the folder `former` further on `texts`, at a low learning rate; save it into `folder`.

    The tokenizer does not change. Length and errors are those of `train_demo_model`.
    """
    length = Length(seconds, steps)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(former)
    model = GPT2LMHeadModel.from_pretrained(former)
    return _trained(model, tokenizer, _encoded(tokenizer, texts), folder, length, seed, rate=_CONTINUED_RATE)


def train_without(course: Course, left_out: Collection[str]) -> GPT2LMHeadModel:
    """Repeat both runs without some texts. Tokenizer, first weights, batches and learning rates are the same.

    With nothing left out, the model has the weights of the course's.

    Raises:
        LorifError: the training diverged.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(course.first.folder)
    model = _new_model(len(tokenizer), tokenizer.eos_token_id, course.seed)
    removed = (
        {tuple(ids) for ids in tokenizer(list(left_out), truncation=True)["input_ids"]} if left_out else set()
    )
    for run, texts, rate in (
        (course.first, course.first_texts, 1.0),
        (course.further, course.further_texts, _CONTINUED_RATE),
    ):
        fit_again(model, _encoded(tokenizer, texts), run.rates, course.seed, rate, removed)
    return model


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Encoded]:
    """Token ids of the texts that have at least two tokens, one of them to predict."""
    encoded = [ids for ids in tokenizer(list(texts), truncation=True)["input_ids"] if len(ids) > 1]
    if not encoded:
        raise LorifError("the demo model cannot be trained: no text has two tokens or more")
    return encoded


def _trained(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    encoded: Sequence[Encoded],
    folder: Path,
    length: Length,
    seed: int,
    rate: float,
) -> DemoModel:
    """Train the model, and save weights and tokenizer."""
    trained = fit(model, encoded, length, seed, rate)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return DemoModel(
        folder=folder,
        parameters=model.num_parameters(),
        rates=trained.rates,
        epochs=trained.tokens / sum(map(len, encoded)),
        seconds=trained.seconds,
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
