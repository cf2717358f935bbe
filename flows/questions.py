"""Asking an index on one machine, with neither Ray nor Prefect: what `query`, `select` and `serve` share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorif_core.config import ModelConfig
from lorif_core.config_file import parse_model, parse_options, parse_storage
from lorif_core.search.index import Index, open_index
from lorif_core.search.options import Terms
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import model_config_of
from lorif_core.search.top_k import Scored, TopK

_SIDES = ("proponents", "opponents")


@dataclass(frozen=True, slots=True)
class Found:
    """Of one query: its token-summed loss, both ends of the ranking, and the descriptive columns of those rows."""

    query: Query
    loss: float
    top: TopK
    details: dict[str, dict[str, Any]]


def open_for_questions(index: str, overrides: Sequence[str], model: str | None) -> tuple[Index, ModelConfig]:
    """An index, and where its newest checkpoint is now."""
    options = parse_options(list(overrides), ("storage", "model"))
    opened = open_index(index, parse_storage(options.get("storage", {})))
    found_at = model_config_of(opened.generation.newest, model)
    return opened, parse_model({"revision": found_at.revision, **options.get("model", {})}, found_at.path)


def find(
    index: Index,
    checkpoint: ModelConfig,
    queries: Sequence[Query],
    top_k: int,
    terms: Terms,
    *,
    two_stage: bool = False,
) -> list[Found]:
    """Both ends of the ranking of every query, in one pass over the index, or in two stages."""
    gradients = index.encode(queries, checkpoint)
    tops = index.top_k_folded(index.fold(gradients, terms), top_k, terms, two_stage=two_stage)
    ids = [hit.example_id for top in tops for side in _SIDES for hit in getattr(top, side)]
    details = index.store.rows.details(index.generation.factors_version, ids)
    losses = gradients[-1].losses.tolist()
    return [Found(*found, details) for found in zip(queries, losses, tops, strict=True)]


def answer(
    index: Index, checkpoint: ModelConfig, query: Query, top_k: int, terms: Terms, *, explain: bool
) -> dict[str, list[dict[str, Any]]]:
    """Proponents and opponents of a query, with what they are; explained, with what their scores consist of."""
    (one,) = find(index, checkpoint, [query], top_k, terms)
    hits = {side: getattr(one.top, side) for side in _SIDES}
    found = {side: [_told(rank, hit, one.details) for rank, hit in enumerate(hits[side], 1)] for side in _SIDES}
    if explain:
        ids = [hit.example_id for side in _SIDES for hit in hits[side]]
        listed = [hit for side in _SIDES for hit in found[side]]
        tokens, by_token = index.token_scores(query, ids, checkpoint)
        layers, by_layer = index.layer_scores(query, ids, model=checkpoint)
        for place, hit in enumerate(listed):
            hit["tokens"] = list(zip(tokens, by_token[:, place].tolist(), strict=True))
            hit["layers"] = dict(zip(layers, by_layer[:, place].tolist(), strict=True))
    return found


def _told(rank: int, hit: Scored, details: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = details[hit.example_id]
    return {
        "rank": rank, "example_id": hit.example_id, "score": hit.score,
        "uri": row["uri"], "row": row["row"], "text": row.get("text"),
    }  # fmt: skip
