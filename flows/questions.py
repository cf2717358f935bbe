"""Questions to an index on one machine, without Ray and Prefect; shared by `query`, `select` and `serve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorif_core.config import ModelConfig
from lorif_core.config_file import parse_model, parse_options, parse_storage
from lorif_core.search.index import Index, open_index
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import model_config_of
from lorif_core.search.top_k import Scored, TopK

_SIDES = ("proponents", "opponents")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query, its token-summed loss, both ends of its ranking, and the descriptive columns of these rows."""

    query: Query
    loss: float
    top: TopK
    details: dict[str, dict[str, Any]]


def open_for_questions(index: str, overrides: Sequence[str], model: str | None) -> tuple[Index, ModelConfig]:
    """Open an index; returns it and the current location of its newest checkpoint."""
    options = parse_options(list(overrides), ("storage", "model"))
    opened = open_index(index, parse_storage(options.get("storage", {})))
    recorded = model_config_of(opened.generation.newest, model)
    return opened, parse_model({"revision": recorded.revision, **options.get("model", {})}, recorded.path)


def search_queries(
    index: Index,
    checkpoint: ModelConfig,
    queries: Sequence[Query],
    top_k: int,
    options: SearchOptions,
    *,
    two_stage: bool = False,
) -> list[QueryResult]:
    """Search both ends of the ranking of every query, in one pass over the index or in two stages."""
    gradients = index.encode(queries, checkpoint)
    tops = index.top_k_folded(index.fold(gradients, options), top_k, options, two_stage=two_stage)
    ids = [hit.example_id for top in tops for side in _SIDES for hit in getattr(top, side)]
    details = index.store.rows.details(index.generation.factors_version, ids)
    losses = gradients[-1].losses.tolist()
    return [QueryResult(query, loss, top, details) for query, loss, top in zip(queries, losses, tops, strict=True)]


def answer(
    index: Index, checkpoint: ModelConfig, query: Query, top_k: int, options: SearchOptions, *, explain: bool
) -> dict[str, list[dict[str, Any]]]:
    """Proponents and opponents of a query as plain values; with `explain`, also the parts of their scores."""
    (result,) = search_queries(index, checkpoint, [query], top_k, options)
    hits = {side: getattr(result.top, side) for side in _SIDES}
    rows = {side: [_row(rank, hit, result.details) for rank, hit in enumerate(hits[side], 1)] for side in _SIDES}
    if explain:
        ids = [hit.example_id for side in _SIDES for hit in hits[side]]
        tokens, by_token = index.token_scores(query, ids, checkpoint)
        layers, by_layer = index.layer_scores(query, ids, model=checkpoint)
        for column, row in enumerate(row for side in _SIDES for row in rows[side]):
            row["tokens"] = list(zip(tokens, by_token[:, column].tolist(), strict=True))
            row["layers"] = dict(zip(layers, by_layer[:, column].tolist(), strict=True))
    return rows


def _row(rank: int, hit: Scored, details: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = details[hit.example_id]
    return {
        "rank": rank, "example_id": hit.example_id, "score": hit.score,
        "uri": row["uri"], "row": row["row"], "text": row.get("text"),
    }  # fmt: skip
