"""Loads the inputs of an evaluation into memory: a checkpoint, the examples of a corpus, and the queries."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core.corpus.chat_template import corpus_template
from lorif_core.corpus.shards import list_shards
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.lifecycle.index_shard import read_examples
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.search.queries import query_example, read_queries


@dataclass(frozen=True, slots=True)
class EvaluationInputs:
    """The model in float32 on the CPU, the examples with at least one scored token, and the queries, in order."""

    loaded: LoadedModel
    examples: Sequence[Example]
    queries: Sequence[Example]

    def texts(self) -> tuple[list[str], list[str]]:
        """Texts of examples and queries; empty without a tokenizer (`load_inputs` rejects this for BM25)."""
        return [e.text or "" for e in self.examples], [q.text or "" for q in self.queries]


def load_inputs(evaluation: EvaluationConfig, model: str | None = None) -> EvaluationInputs:
    """Load checkpoint, corpus and queries.

    Args:
        evaluation: the EVALUATION file.
        model: checkpoint to load instead of the one that training starts from.

    Raises:
        UserError: checkpoint, corpus or queries cannot be used, or BM25 is enabled and there is no tokenizer.
    """
    config = evaluation.base()
    section = config.model.model_copy(update={"dtype": "float32", **({"path": model} if model else {})})
    loaded = load_model(section, config.storage, "cpu")
    if evaluation.bm25 and loaded.tokenizer is None:
        raise UserError(
            f"BM25 compares words, but {config.model.path} has no tokenizer to decode tokens; save one with it or "
            f"set bm25: false"
        )
    with_texts = config.model_copy(update={"corpus": config.corpus.model_copy(update={"store_text": True})})
    shards = list_shards(config.corpus, config.storage).shards
    all_examples = (example for shard in shards for example in read_examples(shard, with_texts, loaded))
    examples = [example for example in all_examples if example.scored]
    if not examples:
        raise UserError(f"no example of the corpus {config.corpus.uri} has a scored token; check its columns")
    length, template = config.corpus.longest, corpus_template(config.corpus, loaded.tokenizer)
    queries = [
        query_example(query, loaded.tokenizer, loaded.vocab_size, length, template)
        for query in read_queries(evaluation.queries, config.storage)
    ]
    return EvaluationInputs(loaded, examples, queries)


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits that identify examples by their ids, tokens and labels."""
    content = [[example.example_id, example.content_hash, example.labels.tolist()] for example in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
