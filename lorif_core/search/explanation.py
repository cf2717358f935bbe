"""Why a query's examples stand where they stand: its tokens' contributions to the scores that a page shows."""

from dataclasses import dataclass

import numpy as np

from lorif_core.search.contributions import token_scores
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.top_k import TopK
from lorif_core.spec import MASKED

HITS_EXPLAINED = 10
"""Of each side."""
QUERIES_EXPLAINED = 20
"""Of a batch: its first, as far as a report shows them."""
_MOST_TOKENS = 2**15  # that the model reads for one query: all of its tokens once for each that is scored


@dataclass(frozen=True, slots=True)
class Explanation:
    """A query's T tokens as text, and by example id what each adds to that example's score, (T,) float32.

    Where there is none, `reason` says why, and the others are empty.
    """

    tokens: tuple[str, ...]
    by_example: dict[str, np.ndarray]
    reason: str | None = None


def explain(index: GenerationReader, query: Query, top: TopK, model: ModelInput = None) -> Explanation:
    """Explain the first `HITS_EXPLAINED` examples of each side; takes a backward pass per scored token.

    Args:
        index: the generation that was asked.
        query: what was asked.
        top: what was found.
        model: as in `Index.scores`.
    """
    reason = _reason_against(index, query, model)
    if reason is not None:
        return Explanation((), {}, reason)
    hits = [*top.proponents[:HITS_EXPLAINED], *top.opponents[:HITS_EXPLAINED]]
    ids = list(dict.fromkeys(hit.example_id for hit in hits))
    tokens, found_TR = token_scores(index, query, ids, model)
    return Explanation(tuple(tokens), {name: found_TR[:, place] for place, name in enumerate(ids)})


def _reason_against(index: GenerationReader, query: Query, model: ModelInput) -> str | None:
    """Why a query isn't explained: its scores are no sums over tokens, or it would take too long."""
    if query.group is not None or query.contrast is not None:
        return "it consists of several queries"
    if any(part.part.factored_query for part in index.parts):
        return "this index factors queries, so that scores are no sums over tokens"
    example = index.encoder(model).example(query)
    length, scored = len(example.input_ids), int((example.labels[1:] != MASKED).sum())
    if length * scored > _MOST_TOKENS:
        return f"it is too long, with {scored:,} scored tokens of {length:,}"
    return None
