"""Creates a testbed for LDS on a pretrained model: text blocks to fine-tune it on, and held-out ones as queries.

    python -m benchmarks.quality.pretrained FOLDER --model CHECKPOINT [--text python --methods budgets]

CHECKPOINT is the folder that `benchmarks.real_model` writes. The text `python` is the language reference of this
interpreter; another value is a file in WikiText's format. Writes FOLDER/corpus.jsonl, queries.jsonl and
evaluation.yaml, the input of `lorif evaluate lds -c FOLDER/evaluation.yaml --out OUT`, and of `recall` and
`tail-patch` likewise.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.quality.methods import BUDGET_COMPARE, BUDGET_METHODS, REAL_COMPARE, REAL_METHODS
from benchmarks.quality.testbed import blocks_of, load_articles, write_blocks

METHODS = {"presets": (REAL_METHODS, REAL_COMPARE), "budgets": (BUDGET_METHODS, BUDGET_COMPARE)}
TOKENS = 64
EXAMPLES = 256
QUERIES = 48
BLOCKS_PER_TEXT = 30
# long topics that hardly quote one another
TOPICS = (
    "compound", "types", "formatstrings", "string-methods", "typesseq", "debugger", "typesmapping", "assignment",
    "comparisons", "execmodel", "strings", "import",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", default="python")
    parser.add_argument("--subsets", type=int, default=36)
    parser.add_argument("--methods", choices=METHODS, default="presets")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    blocks = blocks_of_texts(texts(arguments.text), tokenizer)
    write_blocks(blocks, QUERIES, EXAMPLES, folder)
    content = evaluation(folder, arguments.model.resolve(), arguments.subsets, arguments.methods)
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def texts(name: str) -> list[str]:
    """The texts to fine-tune on."""
    return [topics[topic] for topic in TOPICS] if name == "python" else load_articles(Path(name))


def blocks_of_texts(articles: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Blocks of as few texts as it takes, from each text at most BLOCKS_PER_TEXT."""
    shuffled = sorted(articles)
    random.Random(0).shuffle(shuffled)
    blocks: list[list[int]] = []
    for article in shuffled:
        blocks += list(blocks_of(article, tokenizer, TOKENS))[:BLOCKS_PER_TEXT]
        if len(blocks) >= QUERIES + EXAMPLES:
            break
    return blocks


def evaluation(folder: Path, model: Path, subsets: int, methods: str) -> dict[str, Any]:
    """Content of the testbed's EVALUATION file."""
    chosen, compared = METHODS[methods]
    return {
        "config": {
            "model": {"path": str(model)},
            "corpus": {"uri": str(folder / "corpus.jsonl"), "id": "id", "tokens": "tokens", "max_length": TOKENS},
            "compute": {"workers": 2, "tokens_per_batch": 1024},
        },
        "queries": str(folder / "queries.jsonl"),
        "training": {"epochs": 2, "batch": 8, "learning_rate": 1e-4, "dtype": "bfloat16"},
        "subsets": {"count": subsets},
        "methods": chosen,
        "compare": [list(pair) for pair in compared],
    }


if __name__ == "__main__":
    main()
