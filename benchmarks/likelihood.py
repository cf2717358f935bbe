"""Nats a token of what a model says itself, of human text, and of tokens in a random order.

    python -m benchmarks.likelihood CHECKPOINT [--text FILE --beginnings 16 --words 25 --tokens 24 --out FILE]

Each passage of a text is cut after some words. Its beginning is continued in five ways of as many tokens: by the
model's first choices (greedy), by a random sample of the model (temperature 1), by how the passage goes on, by how
the next one goes on, and by the tokens of its own continuation in a random order. For each way the losses of the
continuation's tokens are compared with those of the model's first choice in the same places. The words of
`lorif_core.search.likelihood` are chosen by the difference.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.run_record import write_result
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs
from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.corpus.tokenise import encode_pair
from lorif_core.model.generation import generate
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.model.token_losses import token_losses
from lorif_core.search.likelihood import limit_of
from lorif_core.spec import MASKED

_SEED = 0

Measured = tuple[float, float]
"""Nats a token of a continuation, and those of the model's first choices in the same places."""


def main() -> None:
    arguments = parse_arguments()
    loaded = load_model(ModelConfig(path=arguments.checkpoint), StorageConfig())
    texts = beginnings(load_paragraphs(arguments.text), arguments.words, arguments.beginnings + 1)
    torch.manual_seed(_SEED)
    measured: dict[str, list[Measured]] = {}
    for number, ((beginning, own), (_, others)) in enumerate(pairwise(texts), start=1):
        for kind, value in measure(loaded, beginning, own, others, arguments.tokens):
            measured.setdefault(kind, []).append(value)
        print(f"{number} of {arguments.beginnings}", flush=True)
    result = {
        "model": arguments.name,
        "text": arguments.text.parent.name,
        "beginnings": arguments.beginnings,
        "words": arguments.words,
        "tokens": arguments.tokens,
        "kinds": {kind: summarise(values) for kind, values in measured.items()},
    }
    for kind, row in result["kinds"].items():
        print(kind, row)
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--name", default="SmolLM2-135M", help="the model's name in the result")
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--beginnings", type=int, default=16)
    parser.add_argument("--words", type=int, default=25, help="words of a beginning")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a continuation")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def beginnings(paragraphs: Sequence[str], words: int, count: int) -> list[tuple[str, str]]:
    """Passages spread over a text, each as its first words and the rest, which is at least three times as long."""
    long = [text.split(" ", words) for text in paragraphs if text.count(" ") >= 4 * words]
    chosen = (long[place * len(long) // count] for place in range(count))
    return [(" ".join(parts[:words]), f" {parts[words]}") for parts in chosen]


def measure(
    loaded: LoadedModel, beginning: str, own: str, others: str, tokens: int
) -> Iterator[tuple[str, Measured]]:
    """The kind of each continuation of a beginning, and its losses."""
    for kind, continuation in {
        "greedy": generate(loaded, beginning, tokens).text,
        "sampled": sampled(loaded, beginning, tokens),
        "human": own,
        "human, of another passage": others,
    }.items():
        if continuation.strip():
            yield kind, losses(loaded, *tokenised(loaded, beginning, continuation, tokens))
    ids, labels = tokenised(loaded, beginning, own, tokens)
    scored = np.flatnonzero(labels != MASKED)
    mixed = np.random.default_rng(_SEED).permutation(ids[scored])
    ids[scored], labels[scored] = mixed, mixed
    yield "human, tokens in a random order", losses(loaded, ids, labels)


def sampled(loaded: LoadedModel, beginning: str, tokens: int) -> str:
    """A random continuation at temperature 1, of all tokens."""
    assert loaded.tokenizer is not None
    ids = torch.tensor([loaded.tokenizer(beginning)["input_ids"]])
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    mask = torch.ones_like(ids)
    new = loaded.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, **options)[0, ids.shape[1] :]
    text: str = loaded.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def tokenised(
    loaded: LoadedModel, beginning: str, continuation: str, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of a beginning with the first tokens of a continuation, as a query of both has them."""
    sequence = encode_pair(beginning, continuation, loaded.tokenizer, loaded.vocab_size, "the passage")
    end = int(np.argmax(sequence.labels != MASKED)) + tokens
    return sequence.ids[:end].copy(), sequence.labels[:end].copy()


def losses(loaded: LoadedModel, ids: np.ndarray, labels: np.ndarray) -> Measured:
    of_tokens, of_first_choices = token_losses(loaded, ids, labels)
    return float(np.nanmean(of_tokens)), float(np.nanmean(of_first_choices))


def summarise(values: Sequence[Measured]) -> dict[str, Any]:
    """Means and percentiles over the continuations, and how many have the words up to each limit."""
    above = [nats - own for nats, own in values]
    return {
        "continuations": len(values),
        "nats": spread([nats for nats, _ in values]),
        "own_nats": spread([own for _, own in values]),
        "above": spread(above),
        "up_to": {str(limit): count for limit, count in sorted(Counter(map(limit_of, above)).items())},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(values, [10, 90]).tolist()
    return {"mean": round(statistics.mean(values), 3), "p10": round(low, 3), "p90": round(high, 3)}


if __name__ == "__main__":
    main()
