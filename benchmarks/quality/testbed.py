"""Creates a testbed for LDS: a pretrained GPT-2, text blocks to fine-tune it on, and held-out blocks as queries.

    python -m benchmarks.quality.testbed FOLDER --size small|large [--text FILE --pretrain FILE]

Writes FOLDER/model, corpus.jsonl, queries.jsonl and evaluation.yaml, the input of
`lorif evaluate lds -c FOLDER/evaluation.yaml --out OUT`. The texts default to WikiText-2 next to the repository,
or to the demo's corpus if that is missing.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerFast

from benchmarks.quality.methods import COMPARE, methods
from benchmarks.workload import load_paragraphs, make_model, train_tokenizer
from lorif_core.corpus.tokenise import Example, make_example
from lorif_core.evaluation.training_recipe import Recipe, train

_DATA = Path("../shared/data/wikitext-2")


@dataclass(frozen=True)
class Size:
    """Size of a testbed: model, number and length of the text blocks, and settings of the ground truth."""

    layers: int
    width: int
    tokens: int
    vocabulary: int
    examples: int
    queries: int
    pretraining_epochs: int
    training: dict[str, Any]
    subsets: dict[str, Any]


SIZES = {
    "small": Size(2, 96, 64, 1024, 1024, 64, 3, {"epochs": 3, "learning_rate": 1e-3}, {"count": 60, "seeds": 2}),
    "large": Size(4, 256, 128, 2048, 2048, 64, 2, {"epochs": 2, "learning_rate": 1e-3}, {"count": 40, "seeds": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--text", type=Path, default=_DATA / "valid.txt")
    parser.add_argument("--pretrain", type=Path, default=_DATA / "test.txt")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True)
    articles = load_articles(arguments.text)
    tokenizer = train_tokenizer([*load_paragraphs(arguments.pretrain), *articles], size.vocabulary)
    blocks = [block for text in articles for block in blocks_of(text, tokenizer, size.tokens)]
    write_blocks(blocks, size.queries, size.examples, folder)
    pretrain(load_articles(arguments.pretrain), tokenizer, size, folder / "model")
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(evaluation(folder, size), sort_keys=False))


def load_articles(path: Path) -> list[str]:
    """One text per article of a WikiText file, or the demo's passages if the file does not exist."""
    if not path.exists():
        return load_paragraphs(path)
    articles: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" = ") and not line.startswith(" = = "):
            articles.append([])
        if line.strip():
            articles[-1].append(line.strip())
    return ["\n".join(lines) for lines in articles if lines]


def blocks_of(text: str, tokenizer: PreTrainedTokenizerFast, tokens: int) -> Iterator[list[int]]:
    """Split a text into consecutive blocks of `tokens` tokens; an incomplete last block is dropped."""
    ids = tokenizer(text)["input_ids"]
    for start in range(0, len(ids) - tokens + 1, tokens):
        yield ids[start : start + tokens]


def write_blocks(blocks: Sequence[list[int]], queries: int, examples: int, folder: Path) -> None:
    """Shuffle the blocks of all texts; write the first ones as queries, the next ones as corpus."""
    shuffled = list(blocks)
    random.Random(0).shuffle(shuffled)
    if len(blocks) < queries + examples:
        raise SystemExit(f"the text has {len(blocks)} blocks; {queries + examples} are needed")
    parts = {
        "queries.jsonl": shuffled[:queries],
        "corpus.jsonl": shuffled[queries : queries + examples],
    }
    for name, selected in parts.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            for number, block in enumerate(selected):
                file.write(json.dumps({"id": f"{name[0]}{number}", "tokens": block}) + "\n")


def pretrain(articles: Sequence[str], tokenizer: PreTrainedTokenizerFast, size: Size, folder: Path) -> None:
    """Train and save the checkpoint that every training run starts from."""
    model = make_model(size.layers, size.width, size.tokens, size.vocabulary)
    examples: list[Example] = []
    for text in articles:
        for block in blocks_of(text, tokenizer, size.tokens):
            ids = torch.tensor(block, dtype=torch.int32).numpy()
            examples.append(make_example(str(len(examples)), 0, ids, ids, None))
    train(model, examples, Recipe(epochs=size.pretraining_epochs, learning_rate=2e-3), seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def evaluation(folder: Path, size: Size) -> dict[str, Any]:
    """Content of the testbed's EVALUATION file."""
    return {
        "config": {
            "model": {"path": str(folder / "model")},
            "corpus": {
                "uri": str(folder / "corpus.jsonl"), "id": "id", "tokens": "tokens", "max_length": size.tokens,
            },
            "compute": {"workers": 2},
        },
        "queries": str(folder / "queries.jsonl"),
        "training": size.training,
        "subsets": size.subsets,
        "methods": methods(size.examples),
        "compare": [list(pair) for pair in COMPARE],
    }  # fmt: skip


if __name__ == "__main__":
    main()
