"""Read all parts of one generation: check options, encode queries at every checkpoint, fold and score them.

This module needs neither Ray nor Prefect. Shapes: Q queries, N rows, L layers.
"""

from collections.abc import Sequence

import numpy as np

from lorif_core.search.options import DEFAULT_OPTIONS, SearchOptions, make_options
from lorif_core.search.part_reader import MEMORY_GB, PartReader
from lorif_core.search.queries import QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput, QueryEncoder, QueryGradients
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries
from lorif_core.search.two_stage import check_two_stage
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store


class GenerationReader:
    """One generation of an index; every call reads all of its parts.

    Args:
        store: the tables.
        generation: the generation to read; the newest if None.
    """

    def __init__(self, store: Store, generation: Generation | None = None) -> None:
        self.store = store
        self.generation = generation or store.latest()
        store.check_rows(self.generation)
        self.parts = [PartReader(store, self.generation, part) for part in self.generation.parts]

    @property
    def own_checkpoint_parts(self) -> list[PartReader]:
        """The parts that are scored at their own checkpoint, newest last."""
        return [part for part in self.parts if part.part.follows is None]

    @property
    def resident_rows(self) -> int:
        """Number of rows whose codes are in memory."""
        return sum(part.part.rows for part in self.parts if part.is_resident)

    def options(
        self, where: str | None = None, normalise: str = "none", *, two_stage: bool = False
    ) -> SearchOptions:
        """Search options that are checked against the rows of the generation.

        Raises:
            UserError: as in `make_options` and, for a two-stage search, `check_two_stage`.
        """
        options = make_options(self.store, self.generation.factors_version, where, normalise)
        for part in self.parts if two_stage else ():
            check_two_stage(part.layout, options)
        return options

    def encode(self, queries: QueryInput | Sequence[QueryInput], model: ModelInput = None) -> list[QueryGradients]:
        """Gradients of the queries at every checkpoint that rows are scored at, newest last."""
        parsed = parse_queries(queries)
        return [encoder.gradients(parsed) for encoder in self.encoders(model)]

    def encoders(self, model: ModelInput = None) -> list[QueryEncoder]:
        """The encoders of all checkpoints that rows are scored at, newest last."""
        return [*(part.encoder() for part in self.own_checkpoint_parts[:-1]), self.encoder(model)]

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the newest checkpoint."""
        return self.parts[-1].encoder(model)

    def run_encoder(self, part: int, model: ModelInput = None) -> QueryEncoder:
        """An encoder that runs rows of a part again, at the checkpoint that they are scored at."""
        of_specs = zip(
            (reader.part.spec for reader in self.own_checkpoint_parts), self.encoders(model), strict=True
        )
        encoders, reader = dict(of_specs), self.parts[part]
        followed = reader.part.follows
        return encoders[reader.part.spec] if followed is None else reader.encoder(encoders[followed].loaded)

    def fold(
        self, gradients: Sequence[QueryGradients], options: SearchOptions = DEFAULT_OPTIONS
    ) -> list[FoldedQueries]:
        """The queries folded for every part."""
        pairs = zip(self.own_checkpoint_parts, gradients, strict=True)
        return self.for_all_parts([part.fold(of_part, options) for part, of_part in pairs])

    def for_all_parts(self, folded: Sequence[FoldedQueries]) -> list[FoldedQueries]:
        """Extend queries folded for the parts at their own checkpoint to the parts that follow those."""
        by_spec = {
            part.part.spec: (part, queries)
            for part, queries in zip(self.own_checkpoint_parts, folded, strict=True)
        }
        for_parts = []
        for part in self.parts:
            followed, queries = by_spec[part.part.follows or part.part.spec]
            for_parts.append(queries if part is followed else part.translate(queries, followed.spec))
        return for_parts

    def prepare(self, folded: Sequence[FoldedQueries], memory_gb: float = MEMORY_GB) -> list[PreparedQueries]:
        """Folded queries prepared for a top-k search of every part."""
        return [part.prepare(queries, memory_gb) for part, queries in zip(self.parts, folded, strict=True)]

    def top_k_folded(
        self,
        folded: Sequence[FoldedQueries],
        k: int,
        options: SearchOptions = DEFAULT_OPTIONS,
        *,
        two_stage: bool = False,
    ) -> list[TopK]:
        """Top-k of folded queries over all parts."""
        if not two_stage:
            return self.top_k_prepared(self.prepare(folded), k, options)
        pairs = list(zip(self.parts, folded, strict=True))
        searched = [pair for pair in pairs if pair[0].part.rows] or pairs  # the newest part may have no rows yet
        return _merged(
            [part.two_stage().top_k(queries, k, options.condition, MEMORY_GB) for part, queries in searched]
        )

    def top_k_prepared(
        self, queries: Sequence[PreparedQueries], k: int, options: SearchOptions = DEFAULT_OPTIONS
    ) -> list[TopK]:
        """Top-k over all parts; queries without a prefilter are scored exactly against all rows."""
        pairs = zip(self.parts, queries, strict=True)
        return _merged([part.top_k(prepared, k, options=options) for part, prepared in pairs])

    def scores_folded(
        self, folded: Sequence[FoldedQueries], options: SearchOptions = DEFAULT_OPTIONS
    ) -> tuple[list[str], np.ndarray]:
        """Ids of all rows, and scores (Q, N) float32 of folded queries."""
        ids: list[str] = []
        blocks = []
        for part, queries in zip(self.parts, folded, strict=True):
            for block, scores_QB in part.scored_blocks(queries, options=options):
                ids.extend(block.example_ids)
                blocks.append(scores_QB)
        return ids, np.concatenate(blocks, axis=1)


def _merged(by_part: Sequence[list[TopK]]) -> list[TopK]:
    """The top-k of every query over all parts; merges into that of the first part."""
    best = by_part[0]
    for others in by_part[1:]:
        for top, other in zip(best, others, strict=True):
            top.merge(other)
    return best
