"""Plants sources in a corpus: near-duplicates of queries, made by token edits, and sources given by the user.

The plants depend only on corpus, queries and settings. The planted corpus and its queries are written as tokens,
so that training, all indexes and BM25 use identical data.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.chat_template import ChatTemplate, corpus_template
from lorif_core.corpus.tokenise import Example, make_example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig, RecallConfig
from lorif_core.evaluation.ground_truth import check_identity
from lorif_core.evaluation.inputs import EvaluationInputs, digest
from lorif_core.evaluation.recall import Source
from lorif_core.gradients.projection import counter_generator
from lorif_core.model.loading import LoadedModel
from lorif_core.search.queries import Query, query_example
from lorif_core.spec import MASKED
from lorif_core.storage.filesystem import open_filesystem, storage_errors
from lorif_core.storage.objects import Objects

PARAPHRASE = "paraphrase"
_HEAD = "planting.json"


def edit_tokens(
    ids: np.ndarray, labels: np.ndarray, share: float, tokens: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make a near-duplicate: each token of a random share is dropped, swapped with its neighbour, or replaced.

    Position 0 is not edited: it is never scored and often a special token. A share above 0 edits at least one
    position. At least one token remains scored. Labels move with their tokens; masked positions stay masked.

    Args:
        ids: (T,) int32.
        labels: (T,) int32, -100 where not scored; at least one position after 0 is scored.
        share: share of the positions after 0 to edit, in [0, 1].
        tokens: candidates for replacements.
        rng: random generator.
    """
    count = max(round(share * (len(ids) - 1)), int(share > 0))
    positions = 1 + rng.permutation(len(ids) - 1)[:count]
    dropped, swapped, replaced = (positions[rng.integers(0, 3, count) == kind] for kind in range(3))
    order = np.arange(len(ids))
    for position in np.sort(swapped):
        neighbour = position + 1 if position + 1 < len(ids) else max(position - 1, 1)
        order[[position, neighbour]] = order[[neighbour, position]]
    ids, labels = ids[order], labels[order]
    for position in replaced:
        candidates = tokens[tokens != ids[position]]
        if len(candidates):
            ids[position] = rng.choice(candidates)
            labels[position] = MASKED if labels[position] == MASKED else ids[position]
    is_retained = np.ones(len(ids), dtype=bool)
    is_retained[dropped] = False
    if not (labels[is_retained][1:] != MASKED).any():
        is_retained[:] = True
    return ids[is_retained], labels[is_retained]


@dataclass(frozen=True, slots=True)
class Planted:
    """A corpus with plants appended, the queries that have plants, and the plants of each query."""

    examples: Sequence[Example]
    queries: Sequence[Example]
    sources: Sequence[Source]


def plant(
    inputs: EvaluationInputs, recall: RecallConfig, pairs: Sequence[tuple[Query, Query]], corpus: CorpusConfig
) -> Planted:
    """Append near-duplicates of every query at every share of edits, and the source of every pair.

    Args:
        inputs: the corpus and the queries.
        recall: the recall section of EVALUATION.
        pairs: (query, source).
        corpus: the corpus section of the config; its chat template renders the messages of pairs.

    Raises:
        UserError: a pair cannot be tokenised or has no scored token, or an id would occur twice.
    """
    queries = list(inputs.queries) if recall.edits else []
    plants = list(_near_duplicates(inputs, recall))
    template = corpus_template(corpus, inputs.loaded.tokenizer)
    for pair in pairs:
        query, source = _pair_examples(pair, inputs.loaded, corpus.longest, template)
        plants.append((len(queries), PARAPHRASE, source))
        queries.append(query)
    first = len(inputs.examples)
    sources = [Source(row, first + number, kind) for number, (row, kind, _) in enumerate(plants)]
    examples = [*inputs.examples, *(example for _, _, example in plants)]
    _check_unique_ids(examples)
    _check_unique_ids(queries)
    return Planted(examples, queries, sources)


def _near_duplicates(inputs: EvaluationInputs, recall: RecallConfig) -> Iterator[tuple[int, str, Example]]:
    """Yields (row of the query, kind, plant)."""
    tokens = np.unique(np.concatenate([example.input_ids for example in inputs.examples]))
    for row, query in enumerate(inputs.queries):
        for share in recall.edits:
            kind = "copy" if share == 0 else f"{share:.12g} edited"
            for number in range(recall.per_query):
                name = f"plant/{query.example_id}/{kind}/{number}"
                rng = counter_generator(recall.seed, name)
                ids, labels = edit_tokens(query.input_ids, query.labels, share, tokens, rng)
                yield row, kind, make_example(name, 0, ids, labels, None)


def _pair_examples(
    pair: tuple[Query, Query], loaded: LoadedModel, length: int, template: ChatTemplate | None
) -> tuple[Example, Example]:
    query, source = pair
    name = f"pair/{query.query_id}"
    named = replace(query, query_id=name), replace(source, query_id=f"plant/{name}")
    query_as_example, source_as_example = (
        query_example(q, loaded.tokenizer, loaded.vocab_size, length, template) for q in named
    )
    return query_as_example, source_as_example


def _check_unique_ids(examples: Sequence[Example]) -> None:
    ((example_id, count),) = Counter(example.example_id for example in examples).most_common(1)
    if count > 1:
        raise UserError(
            f"the id {example_id!r} would be in the planted corpus twice; rename that example or query"
        )


class PlantedFolder:
    """The planted corpus in the output folder of an evaluation. An existing corpus is not written again.

    Args:
        out: local folder or object-store URI of the evaluation.
        storage: storage settings of `out`.
    """

    def __init__(self, out: str, storage: StorageConfig) -> None:
        self.uri = f"{out.rstrip('/')}/planted"
        self._storage, self._objects = storage, Objects(self.uri, storage)

    def save(self, planted: Planted, identity: dict[str, Any]) -> None:
        """Write corpus and queries, then their identity. Raises UserError if the folder has another corpus."""
        stored = self._objects.get(_HEAD)
        if stored is not None:
            check_identity(stored, identity, f"{self.uri} contains the planted corpus")
            return
        fs, path = open_filesystem(self.uri, self._storage)
        with storage_errors(self.uri, "write"):
            fs.makedirs(path, exist_ok=True)
            for name, examples in (("corpus", planted.examples), ("queries", planted.queries)):
                fs.pipe_file(f"{path}/{name}.jsonl", "".join(_lines(examples)).encode())
        self._objects.put(_HEAD, identity)

    def evaluation(self, evaluation: EvaluationConfig) -> EvaluationConfig:
        """The same evaluation with the planted corpus and its queries."""
        corpus = evaluation.base().corpus
        columns = {"id": "id", "tokens": "tokens", "labels": "labels"}
        section = {"uri": f"{self.uri}/corpus.jsonl", "max_length": corpus.max_length, **columns}
        return evaluation.model_copy(
            update={
                "config": {**evaluation.config, "corpus": {**section, "store_text": corpus.store_text}},
                "queries": f"{self.uri}/queries.jsonl",
            }
        )


def planting_identity(
    inputs: EvaluationInputs, recall: RecallConfig, pairs: Sequence[tuple[Query, Query]]
) -> dict[str, Any]:
    """Everything that a planted corpus depends on: examples, queries, pairs and settings."""
    return {
        "examples": digest(inputs.examples),
        "queries": digest(inputs.queries),
        "edits": list(recall.edits),
        "per_query": recall.per_query,
        "pairs": hashlib.sha256(repr([*pairs]).encode()).hexdigest()[:16],
        "seed": recall.seed,
    }


def _lines(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        row = {"id": example.example_id, "tokens": example.input_ids.tolist(), "labels": example.labels.tolist()}
        yield json.dumps(row) + "\n"
