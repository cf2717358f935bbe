"""The roles of a batch attribution: one folds queries, the others scan rows."""

from collections.abc import Sequence

import torch

from lorif_core.config import ModelConfig
from lorif_core.search.explanation import Explanation, explain
from lorif_core.search.index import Index
from lorif_core.search.likelihood import SpokenAnswer, spoken_answers
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import Query
from lorif_core.search.source_sums import SourceSums
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store


class QueryRole:
    """Loads the model once, encodes queries, folds the curvature into them and prepares them for a search."""

    def __init__(
        self, store: Store, generation: Generation, model: ModelConfig, memory_gb: float, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._model, self._memory_gb = model, memory_gb

    def fold(
        self, queries: Sequence[Query], options: SearchOptions, shown: int
    ) -> tuple[tuple[list[float], list[SpokenAnswer]], list[PreparedQueries]]:
        """The losses of the queries at the newest checkpoint, and the prepared queries for every part.

        The losses are token-summed; of the first `shown` queries there are also those of the tokens. These are two
        Ray objects, so that the second goes directly from this node's object store to the scorers.
        """
        gradients = self._index.encode(queries, self._model)
        newest = gradients[-1]
        encoder = self._index.encoder(self._model)
        spoken = spoken_answers(encoder, queries[:shown], newest.by_token[:shown])
        prepared = self._index.prepare(self._index.fold(gradients, options), self._memory_gb)
        return (newest.losses.tolist(), spoken), prepared

    def explain(self, queries: Sequence[Query], best: Sequence[TopK]) -> list[Explanation]:
        """Explain the best examples of each query."""
        pairs = zip(queries, best, strict=True)
        return [explain(self._index, query, top, self._model) for query, top in pairs]


class ScoreRole:
    """Scans fragments against folded queries and keeps the top k."""

    def __init__(self, store: Store, generation: Generation, memory_gb: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._memory_gb = memory_gb

    def top_k(
        self,
        part: int,
        queries: list[PreparedQueries],
        k: int,
        fragments: Sequence[int],
        options: SearchOptions,
        shown: int,
    ) -> tuple[list[TopK], SourceSums]:
        """Top k of each query over some fragments of a part, and sums of the first `shown` queries by file.

        `queries` are read in place in the object store.
        """
        sums = SourceSums(shown)
        reader = self._index.parts[part]
        if sums.columns:
            self._index.store.rows.check_descriptions(self._index.generation.factors_version, fragments)
        return reader.top_k(queries[part], k, fragments, self._memory_gb, options, sums), sums
