"""Inputs that the benchmarks share: sequences of real text, a tokenizer, a GPT-2 of a given size."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tasks.demo.corpus import language_reference

DEFAULT_TEXT = Path("../shared/data/wikitext-2/valid.txt")
END = "<|endoftext|>"


def load_paragraphs(path: Path) -> list[str]:
    """Paragraphs of a text file, or of the demo's corpus if the file does not exist."""
    if not path.exists():
        return [paragraph.text for paragraph in language_reference()]
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if len(line) > 40 and not line.startswith("=")]


def train_tokenizer(texts: Sequence[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def make_model(layers: int, width: int, positions: int, vocabulary: int = 4096, seed: int = 0) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2 without dropout."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=layers, n_embd=width, n_head=max(2, width // 64), n_positions=positions, vocab_size=vocabulary,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def write_corpus(texts: Sequence[str], path: Path, sequences: int, characters: int = 280) -> int:
    """Write `sequences` passages of about `characters` or less as jsonl; return their number."""
    passages = [
        text[start : start + characters].strip() for text in texts for start in range(0, len(text), characters)
    ]
    passages = [passage for passage in passages if len(passage) > 40]
    random.Random(0).shuffle(passages)
    while len(passages) < sequences:  # the memory benchmark needs more passages than the text has
        passages += [f"{len(passages)} {passage}" for passage in passages[: sequences - len(passages)]]
    with path.open("w", encoding="utf-8") as file:
        for number, passage in enumerate(passages[:sequences]):
            file.write(json.dumps({"id": f"p{number}", "text": passage}) + "\n")
    return min(sequences, len(passages))
