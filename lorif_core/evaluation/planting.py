"""Planting sources in a corpus: near-duplicates of queries, made by edits of tokens, and sources that users bring.

What is planted is a function of corpus, queries and settings alone. The planted corpus and its queries are written
as tokens, so that training, every index and BM25 see the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorif_core.config import StorageConfig
from lorif_core.corpus.tokenise import Example, make_example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig, RecallConfig
from lorif_core.evaluation.ground_truth import refuse_other
from lorif_core.evaluation.inputs import Material, digest
from lorif_core.evaluation.recall import Source
from lorif_core.gradients.projection import counter_generator
from lorif_core.search.queries import Query, query_example
from lorif_core.spec import MASKED
from lorif_core.storage.filesystem import contact, open_filesystem
from lorif_core.storage.objects import Objects

PARAPHRASE = "paraphrase"
_HEAD = "planting.json"


def edited(
    ids: np.ndarray, labels: np.ndarray, share: float, tokens: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A near-duplicate: a share of the tokens is dropped, swapped with a neighbour, or replaced, one way each.

    Position 0 stays: it is never scored and often a special token. At least one place is edited where the share is
    above 0, and at least one token stays scored. Labels move with their tokens; masked places stay masked.

    Args:
        ids: (T,) int32.
        labels: (T,) int32, -100 where not scored; at least one of them is, after position 0.
        share: of the positions after 0, in [0, 1].
        tokens: what replacements are drawn from.
        draw: where the edits come from.
    """
    count = max(round(share * (len(ids) - 1)), int(share > 0))
    places = 1 + draw.permutation(len(ids) - 1)[:count]
    dropped, swapped, replaced = (places[draw.integers(0, 3, count) == way] for way in range(3))
    order = np.arange(len(ids))
    for place in np.sort(swapped):
        other = place + 1 if place + 1 < len(ids) else max(place - 1, 1)
        order[[place, other]] = order[[other, place]]
    ids, labels = ids[order], labels[order]
    for place in replaced:
        others = tokens[tokens != ids[place]]
        if len(others):
            ids[place] = draw.choice(others)
            labels[place] = MASKED if labels[place] == MASKED else ids[place]
    kept = np.ones(len(ids), dtype=bool)
    kept[dropped] = False
    if not (labels[kept][1:] != MASKED).any():
        kept[:] = True
    return ids[kept], labels[kept]


@dataclass(frozen=True, slots=True)
class Planted:
    """A corpus with its plants at the end, the queries that have one, and which plant is whose."""

    examples: Sequence[Example]
    queries: Sequence[Example]
    sources: Sequence[Source]


def plant(material: Material, recall: RecallConfig, pairs: Sequence[tuple[Query, Query]], length: int) -> Planted:
    """Near-duplicates of every query at every share of edits, and the source of every pair.

    Args:
        material: the corpus and the queries.
        recall: what to plant.
        pairs: (query, source).
        length: tokens of an example at most.

    Raises:
        UserError: a pair cannot be tokenised or has nothing to score, or an id would occur twice.
    """
    queries = list(material.queries) if recall.edits else []
    plants = list(_near_duplicates(material, recall))
    for pair in pairs:
        asked, said = _pair_examples(pair, material, length)
        plants.append((len(queries), PARAPHRASE, said))
        queries.append(asked)
    first = len(material.examples)
    sources = [Source(row, first + number, kind) for number, (row, kind, _) in enumerate(plants)]
    examples = [*material.examples, *(example for _, _, example in plants)]
    _refuse_twice(examples)
    _refuse_twice(queries)
    return Planted(examples, queries, sources)


def _near_duplicates(material: Material, recall: RecallConfig) -> Iterator[tuple[int, str, Example]]:
    """(row of the query, kind, plant)."""
    tokens = np.unique(np.concatenate([example.input_ids for example in material.examples]))
    for row, query in enumerate(material.queries):
        for share in recall.edits:
            kind = "copy" if share == 0 else f"{share:.12g} edited"
            for number in range(recall.per_query):
                name = f"plant/{query.example_id}/{kind}/{number}"
                draw = counter_generator(recall.seed, name)
                ids, labels = edited(query.input_ids, query.labels, share, tokens, draw)
                yield row, kind, make_example(name, 0, ids, labels, None)


def _pair_examples(pair: tuple[Query, Query], material: Material, length: int) -> tuple[Example, Example]:
    query, source = pair
    loaded, name = material.loaded, f"pair/{query.query_id}"
    asked = query_example(replace(query, query_id=name), loaded.tokenizer, loaded.vocab_size, length)
    planted = replace(source, query_id=f"plant/{name}")
    return asked, query_example(planted, loaded.tokenizer, loaded.vocab_size, length)


def _refuse_twice(examples: Sequence[Example]) -> None:
    ((name, times),) = Counter(example.example_id for example in examples).most_common(1)
    if times > 1:
        raise UserError(f"the id {name!r} would be in the planted corpus twice; rename that example or query")


class PlantedFolder:
    """The planted corpus that is kept in the output folder of an evaluation: what is there is not written again.

    Args:
        out: local folder or object-store URI of the evaluation.
        storage: where it is.
    """

    def __init__(self, out: str, storage: StorageConfig) -> None:
        self.uri = f"{out.rstrip('/')}/planted"
        self._storage, self._objects = storage, Objects(self.uri, storage)

    def keep(self, planted: Planted, identity: dict[str, Any]) -> None:
        """Write corpus and queries, then note what they are of. Raises UserError if others are there."""
        found = self._objects.get(_HEAD)
        if found is not None:
            refuse_other(found, identity, f"{self.uri} holds the planted corpus")
            return
        fs, path = open_filesystem(self.uri, self._storage)
        with contact(self.uri, "write"):
            fs.makedirs(path, exist_ok=True)
            for name, examples in (("corpus", planted.examples), ("queries", planted.queries)):
                fs.pipe_file(f"{path}/{name}.jsonl", "".join(_lines(examples)).encode())
        self._objects.put(_HEAD, identity)

    def evaluation(self, evaluation: EvaluationConfig) -> EvaluationConfig:
        """The same evaluation over the planted corpus and its queries."""
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
    material: Material, recall: RecallConfig, pairs: Sequence[tuple[Query, Query]]
) -> dict[str, Any]:
    """What a planted corpus is of: equal for equal examples, queries, pairs and settings."""
    return {
        "examples": digest(material.examples),
        "queries": digest(material.queries),
        "edits": list(recall.edits),
        "per_query": recall.per_query,
        "pairs": hashlib.sha256(repr([*pairs]).encode()).hexdigest()[:16],
        "seed": recall.seed,
    }


def _lines(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        row = {"id": example.example_id, "tokens": example.input_ids.tolist(), "labels": example.labels.tolist()}
        yield json.dumps(row) + "\n"
