"""What an evaluation works on: a checkpoint, the examples of a corpus and the queries, loaded once, in memory."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core.corpus.shards import list_shards
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.lifecycle.index_shard import read_examples
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.search.queries import query_example, read_queries


@dataclass(frozen=True, slots=True)
class Material:
    """The model in float32 on the CPU, the examples with at least one scored token, and the queries, in order."""

    loaded: LoadedModel
    examples: Sequence[Example]
    queries: Sequence[Example]

    def texts(self) -> tuple[list[str], list[str]]:
        """Of examples and queries; empty ones without a tokenizer, which `load_material` refuses for BM25."""
        return [e.text or "" for e in self.examples], [q.text or "" for q in self.queries]


def load_material(evaluation: EvaluationConfig, model: str | None = None) -> Material:
    """Load everything; `model` is another checkpoint than the one that training starts from.

    Raises:
        UserError: checkpoint, corpus or queries are not what they should be, or have no text for BM25.
    """
    config = evaluation.base()
    section = config.model.model_copy(update={"dtype": "float32", **({"path": model} if model else {})})
    loaded = load_model(section, config.storage, "cpu")
    if evaluation.bm25 and loaded.tokenizer is None:
        raise UserError(
            f"BM25 compares words, but {config.model.path} has no tokenizer to make texts of tokens; save one "
            f"beside it or set bm25: false"
        )
    with_texts = config.model_copy(update={"corpus": config.corpus.model_copy(update={"store_text": True})})
    shards = list_shards(config.corpus, config.storage).shards
    read = (example for shard in shards for example in read_examples(shard, with_texts, loaded))
    examples = [example for example in read if example.scored]
    if not examples:
        raise UserError(f"no example of the corpus {config.corpus.uri} has a scored token; check its columns")
    length = config.corpus.max_length
    queries = [
        query_example(query, loaded.tokenizer, loaded.vocab_size, length)
        for query in read_queries(evaluation.queries, config.storage)
    ]
    return Material(loaded, examples, queries)


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits that name examples: their ids, tokens and labels."""
    whole = [[example.example_id, example.content_hash, example.labels.tolist()] for example in examples]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]
