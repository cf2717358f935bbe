"""An index opened for questions: scores, strongest rows, sums, selections, and what a score consists of.

`Index` composes the files beside it; `open_index` is where notebooks and commands begin. Needs neither Ray nor
Prefect. Shapes: Q queries, N rows, T tokens, L layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorif_core.config import StorageConfig
from lorif_core.config_file import parse_storage
from lorif_core.search import contributions, selection, totals
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import Normalisation
from lorif_core.search.queries import QueryInput
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.top_k import TopK
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store


class Index(GenerationReader):
    """An index opened for reading; every call sees one whole generation.

    Scores are loss per step. In a generation with parts at several checkpoints they are that, divided by the
    query's influence on itself at the checkpoint of the row.
    """

    def generations(self) -> list[Generation]:
        """All published generations, newest last."""
        return self.store.generations()

    def scores(
        self,
        queries: Sequence[QueryInput],
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> tuple[list[str], np.ndarray]:
        """Ids of all rows, and scores (Q, N) float32; larger = proponent.

        Args:
            queries: strings, dicts with the fields of a queries file, or `Query` objects.
            model: a checkpoint folder or a loaded model, if the newest checkpoint is no longer where the index was
                built from.
            where: SQL condition on the descriptive columns of `factors`; only rows that meet it are scored.
            normalise: see `Terms`.

        Raises:
            UserError: the model is not the index's checkpoint, a query has nothing to score, or no row is meant.
        """
        terms = self.terms(where, normalise)
        return self.scores_folded(self.fold(self.encode(queries, model), terms), terms)

    def top_k(
        self,
        queries: Sequence[QueryInput],
        k: int,
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
        two_stage: bool = False,
    ) -> list[TopK]:
        """Per query the k strongest proponents and opponents. Memory does not grow with the index.

        Unless normalised: then a float per row is kept. Arguments are those of `scores`, and

        Args:
            two_stage: look among few candidates (`search.two_stage`), which may miss some of the k; the first such
                search reads all codes and keeps a sixteenth of their bytes in memory.
        """
        terms = self.terms(where, normalise, two_stage=two_stage)
        return self.top_k_folded(self.fold(self.encode(queries, model), terms), k, terms, two_stage=two_stage)

    def totals(
        self,
        queries: Sequence[QueryInput],
        by: str = "uri",
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> pa.Table:
        """Sums of scores by a column of `factors`; see `totals.totals`."""
        return totals.totals(self, queries, by, model, self.terms(where, normalise))

    def select(
        self,
        queries: Sequence[QueryInput] | None,
        fraction: float,
        model: ModelInput = None,
        *,
        bottom: bool = False,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> Iterator[pa.RecordBatch]:
        """The part of the corpus with the highest or lowest mean scores; see `selection.select`."""
        terms = self.terms(where, normalise)
        return selection.select(self, queries, fraction, model, terms, bottom=bottom)

    def self_influence(self, where: str | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and s(x, x) of the rows, float32, block by block; compare them within a checkpoint only."""
        self.terms(where)
        for part in self.parts:
            yield from selection.with_ids(part, part.self_influence(where=where), where)

    def token_scores(
        self, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
    ) -> tuple[list[str], np.ndarray]:
        """The query's tokens, and what each adds to the scores of some rows (T, rows)."""
        return contributions.token_scores(self, query, example_ids, model)

    def layer_scores(
        self,
        query: QueryInput,
        example_ids: Sequence[str],
        groups: str | None = None,
        model: ModelInput = None,
    ) -> tuple[list[str], np.ndarray]:
        """Names of layers or groups of layers, and what each adds to the scores of some rows (L, rows)."""
        return contributions.layer_scores(self, query, example_ids, groups, model)


def open_index(uri: str, storage: StorageConfig | Mapping[str, Any] | None = None) -> Index:
    """Open the newest generation of an index at a local folder or an object-store URI.

    Raises:
        UserError: there is no index, or it has no published generation.
    """
    section = storage if isinstance(storage, StorageConfig) else parse_storage(dict(storage or {}))
    return Index(Store(uri, section))
