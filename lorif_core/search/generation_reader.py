"""The parts of one generation, read together: options checked, queries encoded at every checkpoint, and folded.

Needs neither Ray nor Prefect. Shapes: Q queries, N rows, L layers.
"""

from collections.abc import Sequence

import numpy as np

from lorif_core.search.options import PLAIN, Terms, make_terms
from lorif_core.search.part_reader import MEMORY_GB, PartReader
from lorif_core.search.queries import QueryInput, parsed_queries
from lorif_core.search.query_encoder import ModelInput, QueryEncoder, QueryGradients
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Sought
from lorif_core.search.two_stage import check_two_stage
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store


class GenerationReader:
    """One generation of an index, as all of its parts at once; every call sees the whole of it.

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

    def scores_folded(self, folded: Sequence[FoldedQueries], terms: Terms = PLAIN) -> tuple[list[str], np.ndarray]:
        """`scores` of folded queries."""
        ids: list[str] = []
        found = []
        for part, asked in zip(self.parts, folded, strict=True):
            for block, scores_QB in part.scored(asked, terms=terms):
                ids.extend(block.example_ids)
                found.append(scores_QB)
        return ids, np.concatenate(found, axis=1)


def _merged(found: Sequence[list[TopK]]) -> list[TopK]:
    """What several parts have kept of every query."""
    best = found[0]
    for others in found[1:]:
        for kept, other in zip(best, others, strict=True):
            kept.merge(other)
    return best
