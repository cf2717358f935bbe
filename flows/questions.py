"""Asking an index on one machine, with neither Ray nor Prefect: what `lorif query` and `lorif select` share."""

from collections.abc import Sequence
from typing import Any

from lorif_core.config import ModelConfig, parse_model, parse_options, parse_storage
from lorif_core.index import Index, model_config_of, open_index
from lorif_core.queries import Query
from lorif_core.terms import Terms
from lorif_core.topk import Scored

_SIDES = ("proponents", "opponents")


def open_for_questions(index: str, overrides: Sequence[str], model: str | None) -> tuple[Index, ModelConfig]:
    """An index, and where its newest checkpoint is now."""
    options = parse_options(list(overrides), ("storage", "model"))
    opened = open_index(index, parse_storage(options.get("storage", {})))
    found_at = model_config_of(opened.generation.newest, model)
    return opened, parse_model({"revision": found_at.revision, **options.get("model", {})}, found_at.path)


def answer(
    index: Index, checkpoint: ModelConfig, query: Query, top_k: int, terms: Terms, *, explain: bool
) -> dict[str, list[dict[str, Any]]]:
    """Proponents and opponents of a query, with what they are; explained, with what their scores consist of."""
    (top,) = index.top_k_folded(index.fold(index.encode([query], checkpoint), terms), top_k, terms)
    hits = {side: getattr(top, side) for side in _SIDES}
    ids = [hit.example_id for side in _SIDES for hit in hits[side]]
    details = index.store.details(index.generation.factors_version, ids)
    found = {side: [_told(rank, hit, details) for rank, hit in enumerate(hits[side], 1)] for side in _SIDES}
    if explain:
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
