"""Opening an index and asking it: query -> dense gradient -> folded with H^-1 -> scan -> scores or top-k.

Needs neither Ray nor Prefect. Shapes: Q queries, N rows, L layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorif_core import contributions, selection, totals
from lorif_core.config import StorageConfig, parse_storage
from lorif_core.encoder import ModelInput, QueryEncoder, QueryGradients
from lorif_core.generation import Generation
from lorif_core.part import MEMORY_GB, PartReader
from lorif_core.queries import Query, parsed_queries
from lorif_core.scoring import FoldedQueries
from lorif_core.search import Sought
from lorif_core.store import Store
from lorif_core.terms import PLAIN, Normalisation, Terms, make_terms
from lorif_core.topk import TopK
from lorif_core.twostage import check_two_stage

QueryInput = str | Mapping[str, Any] | Query


class Index:
    """An index opened for reading; every call sees one whole generation.

    Scores are loss per step, or, of a generation with parts at several checkpoints, that over the query's own
    influence at the checkpoint of the row.

    Args:
        store: the tables.
        generation: the generation to read; the newest if None.
    """

    def __init__(self, store: Store, generation: Generation | None = None) -> None:
        self.store = store
        self.generation = generation or store.latest()
        self.parts = [PartReader(store, self.generation, part) for part in self.generation.parts]

    @property
    def leaders(self) -> list[PartReader]:
        """The parts that are asked at their own checkpoint, newest last."""
        return [part for part in self.parts if part.part.follows is None]

    @property
    def resident_rows(self) -> int:
        """Rows whose codes are in memory."""
        return sum(part.part.rows for part in self.parts if part.is_resident)

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

    def scores_folded(self, folded: Sequence[FoldedQueries], terms: Terms = PLAIN) -> tuple[list[str], np.ndarray]:
        """`scores` of folded queries."""
        ids: list[str] = []
        found = []
        for part, asked in zip(self.parts, folded, strict=True):
            for block, scores_QB in part.scored(asked, terms=terms):
                ids.extend(block.example_ids)
                found.append(scores_QB)
        return ids, np.concatenate(found, axis=1)

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
            two_stage: look among few candidates (`lorif_core.twostage`), which may miss some of the k; the first
                such search reads all codes and keeps a sixteenth of their bytes in memory.
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

    def terms(self, where: str | None = None, normalise: str = "none", *, two_stage: bool = False) -> Terms:
        """Terms, checked against the rows of the generation.

        Raises UserError as `make_terms` and, for a two-stage search, `check_two_stage`.
        """
        terms = make_terms(self.store, self.generation.factors_version, where, normalise)
        for part in self.parts if two_stage else ():
            check_two_stage(part.layout, terms)
        return terms

    def encode(self, queries: Sequence[QueryInput], model: ModelInput = None) -> list[QueryGradients]:
        """Gradients of the queries under every checkpoint that is asked."""
        parsed = parsed_queries(queries)
        return [encoder.gradients(parsed) for encoder in self.encoders(model)]

    def encoders(self, model: ModelInput = None) -> list[QueryEncoder]:
        """The encoders of all checkpoints that are asked, newest last."""
        return [*(part.encoder() for part in self.leaders[:-1]), self.encoder(model)]

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the newest checkpoint."""
        return self.parts[-1].encoder(model)

    def fold(self, gradients: Sequence[QueryGradients], terms: Terms = PLAIN) -> list[FoldedQueries]:
        """The queries folded for every part."""
        return self.for_parts(
            [part.fold(found, terms) for part, found in zip(self.leaders, gradients, strict=True)]
        )

    def for_parts(self, folded: Sequence[FoldedQueries]) -> list[FoldedQueries]:
        """What is folded for the rows of every checkpoint that is asked, for those that follow them too."""
        led = {part.part.spec: (part, found) for part, found in zip(self.leaders, folded, strict=True)}
        spread = []
        for part in self.parts:
            leader, queries = led[part.part.follows or part.part.spec]
            spread.append(queries if part is leader else part.translated(queries, leader.spec))
        return spread

    def sought(self, folded: Sequence[FoldedQueries], memory_gb: float = MEMORY_GB) -> list[Sought]:
        """Folded queries made ready for a search of every part."""
        return [part.sought(queries, memory_gb) for part, queries in zip(self.parts, folded, strict=True)]

    def top_k_folded(
        self, folded: Sequence[FoldedQueries], k: int, terms: Terms = PLAIN, *, two_stage: bool = False
    ) -> list[TopK]:
        """Top-k of folded queries over all parts."""
        if not two_stage:
            return self.top_k_sought(self.sought(folded), k, terms)
        pairs = zip(self.parts, folded, strict=True)
        return _merged([part.two_stage().top_k(asked, k, terms.where, MEMORY_GB) for part, asked in pairs])

    def top_k_sought(self, queries: Sequence[Sought], k: int, terms: Terms = PLAIN) -> list[TopK]:
        """Top-k of queries that `sought` made ready, or that are to be scored exactly with all rows."""
        pairs = zip(self.parts, queries, strict=True)
        return _merged([part.top_k(asked, k, terms=terms) for part, asked in pairs])


def _merged(found: Sequence[list[TopK]]) -> list[TopK]:
    """What several parts have kept of every query."""
    best = found[0]
    for others in found[1:]:
        for kept, other in zip(best, others, strict=True):
            kept.merge(other)
    return best


def open_index(uri: str, storage: StorageConfig | Mapping[str, Any] | None = None) -> Index:
    """Open the newest generation of an index at a local folder or an object-store URI.

    Raises:
        UserError: there is no index, or it has no published generation.
    """
    section = storage if isinstance(storage, StorageConfig) else parse_storage(dict(storage or {}))
    return Index(Store(uri, section))
