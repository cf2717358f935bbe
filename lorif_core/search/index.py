"""An index opened for queries: scores, strongest rows, sums, selections, and contributions to a score.

`Index` composes the other modules of this folder; notebooks and commands start with `open_index`. It needs neither
Ray nor Prefect. Shapes: Q queries, N rows, T tokens, L layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorif_core.config import StorageConfig
from lorif_core.config_file import parse_storage
from lorif_core.search import contributions, pair_shares, selection, totals, training_shares
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import Normalisation
from lorif_core.search.pair_shares import PairShares
from lorif_core.search.queries import QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.top_k import TopK, check_k
from lorif_core.search.training_shares import TrainingShares
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store


class Index(GenerationReader):
    """An index opened for reading; every call reads the same complete generation.

    A score is a change of loss per step. In a generation with parts at several checkpoints it is divided by the
    query's influence on itself at the checkpoint of the row.
    """

    def __repr__(self) -> str:
        number, rows = self.generation.generation, self.generation.rows
        return f"Index({self.store.uri!r}, generation {number}, {rows:,} rows)"

    def generations(self) -> list[Generation]:
        """All published generations, newest last."""
        return self.store.generations()

    def scores(
        self,
        queries: QueryInput | Sequence[QueryInput],
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> tuple[list[str], np.ndarray]:
        """Ids of all rows, and scores (Q, N) float32; the largest scores belong to proponents.

        Args:
            queries: strings, dicts with the fields of a queries file, or `Query` objects; or one of these.
            model: a checkpoint folder or a loaded model; needed if the newest checkpoint has moved since the index
                was built.
            where: SQL condition on the descriptive columns of `factors`; only rows that meet it are scored.
            normalise: `none` s(q, x); `cosine` s(q, x) / sqrt(s(q, q) s(x, x)); `self` s(q, x) / sqrt(s(x, x)).

        Raises:
            UserError: the model is not the index's checkpoint, a query has no token to score, or no row matches.
        """
        options = self.options(where, normalise)
        return self.scores_folded(self.fold(self.encode(queries, model), options), options)

    def top_k(
        self,
        queries: QueryInput | Sequence[QueryInput],
        k: int,
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
        two_stage: bool = False,
    ) -> list[TopK]:
        """The k strongest proponents and opponents of every query.

        Memory does not grow with the index, except that normalised scores need a float per row.

        Args:
            queries: as in `scores`.
            k: rows of each end.
            model: as in `scores`.
            where: as in `scores`.
            normalise: as in `scores`.
            two_stage: score only a few candidates exactly (`search.two_stage`), which may miss some of the k. The
                first such search reads all codes and retains a sixteenth of their bytes in memory.
        """
        check_k(k)
        options = self.options(where, normalise, two_stage=two_stage)
        return self.top_k_folded(self.fold(self.encode(queries, model), options), k, options, two_stage=two_stage)

    def totals(
        self,
        queries: QueryInput | Sequence[QueryInput],
        by: str = "uri",
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> pa.Table:
        """Sums of scores over the rows that share a value, ordered by query, then from the largest total.

        The columns are `query_id`; the value, under the name of its column; `rows` and their `tokens`; `total` =
        `positive` + `negative`, the sums of the scores above and below zero; `proponents` and `opponents`, their
        numbers; and the shares of the value in all searched rows: `share_of_rows`, `share_of_tokens`,
        `share_of_positive` and `share_of_negative`.

        Args:
            queries: as in `scores`.
            by: a descriptive column of `factors`.
            model: as in `scores`.
            where: as in `scores`.
            normalise: as in `scores`.

        Raises:
            UserError: the column does not exist, or it has too many values for so many queries.
        """
        return totals.totals(self, parse_queries(queries), by, model, self.options(where, normalise))

    def select(
        self,
        queries: QueryInput | Sequence[QueryInput] | None,
        fraction: float,
        model: ModelInput = None,
        *,
        bottom: bool = False,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> Iterator[pa.RecordBatch]:
        """The fraction of the corpus with the highest or lowest mean scores, in the order of the index.

        The columns are `example_id`, `shard`, `uri`, `row` and `score`, the mean of the queries' scores.

        Args:
            queries: the targets, as in `scores`; None selects rows by their self-influence instead.
            fraction: fraction of the matching rows, above 0 and at most 1; at least one row is selected.
            model: as in `scores`.
            bottom: select the lowest scores instead of the highest.
            where: as in `scores`.
            normalise: as in `scores`.

        Raises:
            UserError: the fraction is out of range, or as in `scores`.
        """
        options = self.options(where, normalise)
        parsed = None if queries is None else parse_queries(queries)
        return selection.select(self, parsed, fraction, model, options, bottom=bottom)

    def self_influence(self, where: str | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and s(x, x) float32 of the rows, block by block; comparable within one checkpoint only."""
        condition = self.options(where).condition
        self.store.rows.check_descriptions(self.generation.factors_version)
        for part in self.parts:
            yield from selection.with_ids(part, part.self_influence(where=condition), condition)

    def token_scores(
        self, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
    ) -> tuple[list[str], np.ndarray]:
        """The query's tokens, and the contribution of each to the scores of some rows, (T, rows) float32.

        Args:
            query: one query that is no group. A contrast has the tokens of both of its queries, and one between.
            example_ids: ids of the rows, in the order of the result.
            model: as in `scores`.

        Raises:
            UserError: the query is a group, the index factors queries (`query.factored`), or a row does not exist.
        """
        return contributions.token_scores(self, query, example_ids, model)

    def layer_scores(
        self,
        query: QueryInput,
        example_ids: Sequence[str],
        groups: str | None = None,
        model: ModelInput = None,
    ) -> tuple[list[str], np.ndarray]:
        """Names of layers or layer groups, and the contribution of each to the scores of some rows, (L, rows).

        Args:
            query: a query of any kind.
            example_ids: ids of the rows, in the order of the result.
            groups: a regular expression that is searched in the layer names. Its first group, or else the whole
                match, names the layer's group; `other` without a match. None: every layer is its own group.
            model: as in `scores`.

        Raises:
            UserError: `groups` is not a valid regular expression, or a row does not exist.
        """
        return contributions.layer_scores(self, query, example_ids, groups, model)

    def training_shares(
        self, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
    ) -> TrainingShares:
        """The shares of the tokens of training texts, and of the layers, in the scores of these examples.

        An example whose tokens are not known cannot be run again; the result says why.

        Args:
            query: a query of any kind.
            example_ids: ids of the examples, each once.
            model: as in `scores`.

        Raises:
            UserError: an example does not exist.
        """
        return training_shares.training_shares(self, self.fold(self.encode([query], model)), example_ids, model)

    def pair_shares(
        self, query: QueryInput, example_id: str, start: int, end: int, model: ModelInput = None
    ) -> PairShares:
        """What a span of a training text adds to the score of each token of a query.

        Args:
            query: one query that is no group.
            example_id: the training example.
            start: first character of the span in its stored text.
            end: the character after the last.
            model: as in `scores`.

        Raises:
            UserError: as in `token_scores`; or the example cannot be run again, or no token of it is in the span.
        """
        return pair_shares.pair_shares(self, query, example_id, start, end, model)


def open_index(uri: str, storage: StorageConfig | Mapping[str, Any] | None = None) -> Index:
    """Open the newest generation of an index at a local folder or an object-store URI.

    Args:
        uri: the folder or URI.
        storage: the section `storage` of the config, as an object or as a dict of its keys.

    Raises:
        UserError: there is no index at the URI, or it has no published generation.
    """
    section = storage if isinstance(storage, StorageConfig) else parse_storage(dict(storage or {}))
    return Index(Store(uri, section))
