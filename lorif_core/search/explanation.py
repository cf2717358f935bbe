"""Explain the ranking of a query's examples: the parts of the scores that a page shows."""

from dataclasses import dataclass, field

import numpy as np

from lorif_core.search.contributions import token_scores
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.shares import LayerShare, TrainingToken
from lorif_core.search.top_k import TopK
from lorif_core.search.training_shares import training_shares
from lorif_core.spec import MASKED

HITS_EXPLAINED = 10
"""Examples of each side that are explained."""
QUERIES_EXPLAINED = 20
"""Queries of a batch that are explained: the first ones, which a report shows."""
_MAX_TOKENS = 2**14  # tokens the model reads for one query: for each scored token all up to it


@dataclass(frozen=True, slots=True)
class Explanation:
    """The parts of the scores that a page shows: tokens of the query, tokens of the training texts, and layers.

    Attributes:
        tokens: the query's T tokens as text; empty if `reason` says why its tokens have no parts.
        by_example: by example id the contributions of these tokens to its score, (T,) float32.
        reason: why the query's tokens are not explained; None if they are.
        training_tokens: by example id the tokens of its text; they add up to its score.
        layers: by example id the tracked layers in their order; they add up to its score.
        unshaded: why examples that are missing in `training_tokens` have no shares; None if none is missing.
    """

    tokens: tuple[str, ...]
    by_example: dict[str, np.ndarray]
    reason: str | None = None
    training_tokens: dict[str, tuple[TrainingToken, ...]] = field(default_factory=dict)
    layers: dict[str, tuple[LayerShare, ...]] = field(default_factory=dict)
    unshaded: str | None = None


def explain(index: GenerationReader, query: Query, top: TopK, model: ModelInput = None) -> Explanation:
    """Explain the first `HITS_EXPLAINED` examples of each side.

    It needs a backward pass for each scored token of the query, and one for each example.

    Args:
        index: the generation that was searched.
        query: the query.
        top: its top-k, of scores that are not normalised.
        model: as in `Index.scores`.
    """
    hits = [*top.proponents[:HITS_EXPLAINED], *top.opponents[:HITS_EXPLAINED]]
    ids = list(dict.fromkeys(hit.example_id for hit in hits))
    folded = index.fold(index.encode([query], model))
    training = training_shares(index, folded, ids, model)
    tokens: list[str] = []
    by_example: dict[str, np.ndarray] = {}
    reason = _reason_not_to_explain(index, query, model)
    if reason is None:
        tokens, scores_TR = token_scores(index, query, ids, model)
        by_example = {example_id: scores_TR[:, row] for row, example_id in enumerate(ids)}
    return Explanation(tuple(tokens), by_example, reason, training.tokens, training.layers, training.reason)


def _reason_not_to_explain(index: GenerationReader, query: Query, model: ModelInput) -> str | None:
    """Why a query is not explained: its scores are not sums over tokens, or it would take too long; else None."""
    if query.group is not None:
        return "it consists of several queries"
    if any(member.messages is not None for _, member in query.members[1:]):
        return "it compares conversations"
    if any(part.part.factored_query for part in index.parts):
        return "this index factors queries, so scores are not sums over tokens"
    examples = [index.encoder(model).example(member) for _, member in query.members]
    scored = [np.flatnonzero(example.labels[1:] != MASKED) + 1 for example in examples]
    if sum(int((positions + 1).sum()) for positions in scored) > _MAX_TOKENS:
        tokens = sum(len(example.input_ids) for example in examples)
        return f"it is too long, with {sum(map(len, scored)):,} scored tokens of {tokens:,}"
    return None
