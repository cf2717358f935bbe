"""Why a query's examples stand where they stand: its tokens' contributions to the scores that a page shows."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lorif_core.queries import Query
from lorif_core.topk import TopK

if TYPE_CHECKING:
    from lorif_core.index import Index, ModelInput

HITS_EXPLAINED = 10
"""Of each side."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A query's T tokens as text, and by example id what each adds to that example's score, (T,) float32."""

    tokens: tuple[str, ...]
    by_example: dict[str, np.ndarray] = field(default_factory=dict)


def explain(index: "Index", query: Query, top: TopK, model: "ModelInput" = None) -> Explanation | None:
    """Explain the first `HITS_EXPLAINED` examples of each side; takes a backward pass per scored token.

    None where scores are no sums over tokens: the query is a group or a contrast, or the index factors queries.

    Args:
        index: the generation that was asked.
        query: what was asked.
        top: what was found.
        model: as in `Index.scores`.
    """
    if query.group is not None or query.contrast is not None:
        return None
    if any(part.part.factored_query for part in index.parts):
        return None
    hits = [*top.proponents[:HITS_EXPLAINED], *top.opponents[:HITS_EXPLAINED]]
    ids = list(dict.fromkeys(hit.example_id for hit in hits))
    tokens, found_TR = index.token_scores(query, ids, model)
    return Explanation(tuple(tokens), {name: found_TR[:, place] for place, name in enumerate(ids)})
