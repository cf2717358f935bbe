"""Explain the ranking of a query's examples: the contributions of its tokens to the scores that a page shows."""

from dataclasses import dataclass

import numpy as np

from lorif_core.search.contributions import token_scores
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.top_k import TopK
from lorif_core.spec import MASKED

HITS_EXPLAINED = 10
"""Examples of each side that are explained."""
QUERIES_EXPLAINED = 20
"""Queries of a batch that are explained: the first ones, which a report shows."""
_MAX_TOKENS = 2**15  # tokens the model reads for one query: all of its tokens, once per scored token


@dataclass(frozen=True, slots=True)
class Explanation:
    """A query's T tokens as text, and by example id their contributions to the example's score, (T,) float32.

    If the query cannot be explained, `reason` says why and the other fields are empty.
    """

    tokens: tuple[str, ...]
    by_example: dict[str, np.ndarray]
    reason: str | None = None


def explain(index: GenerationReader, query: Query, top: TopK, model: ModelInput = None) -> Explanation:
    """Explain the first `HITS_EXPLAINED` examples of each side; needs a backward pass per scored token.

    Args:
        index: the generation that was searched.
        query: the query.
        top: its top-k.
        model: as in `Index.scores`.
    """
    reason = _reason_not_to_explain(index, query, model)
    if reason is not None:
        return Explanation((), {}, reason)
    hits = [*top.proponents[:HITS_EXPLAINED], *top.opponents[:HITS_EXPLAINED]]
    ids = list(dict.fromkeys(hit.example_id for hit in hits))
    tokens, scores_TR = token_scores(index, query, ids, model)
    return Explanation(tuple(tokens), {example_id: scores_TR[:, row] for row, example_id in enumerate(ids)})


def _reason_not_to_explain(index: GenerationReader, query: Query, model: ModelInput) -> str | None:
    """Why a query is not explained: its scores are not sums over tokens, or it would take too long; else None."""
    if query.group is not None or query.contrast is not None:
        return "it consists of several queries"
    if any(part.part.factored_query for part in index.parts):
        return "this index factors queries, so scores are not sums over tokens"
    example = index.encoder(model).example(query)
    length, scored = len(example.input_ids), int((example.labels[1:] != MASKED).sum())
    if length * scored > _MAX_TOKENS:
        return f"it is too long, with {scored:,} scored tokens of {length:,}"
    return None
