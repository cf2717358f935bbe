"""Questions to an index on one machine, without Ray and Prefect; shared by `query`, `select` and `serve`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorif_core.config import ModelConfig
from lorif_core.config_file import parse_model, parse_options, parse_storage
from lorif_core.corpus.turns import turns_from_json
from lorif_core.errors import UserError
from lorif_core.model.generation import generate
from lorif_core.model.loading import LoadedModel
from lorif_core.search.index import Index, open_index
from lorif_core.search.likelihood import SpokenAnswer, spoken_answers
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import model_config_of
from lorif_core.search.shares import TrainingToken
from lorif_core.search.top_k import Scored, TopK
from lorif_core.tables.checksums import TURNS

_SIDES = ("proponents", "opponents")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query, its token-summed loss, both ends of its ranking, and the descriptive columns of these rows.

    `spoken` has the losses of its tokens.
    """

    query: Query
    loss: float
    top: TopK
    details: dict[str, dict[str, Any]]
    spoken: SpokenAnswer


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
    newest = gradients[-1]
    spoken = spoken_answers(index.encoder(checkpoint), queries, newest.by_token)
    return [
        QueryResult(query, loss, top, details, of_query)
        for query, loss, top, of_query in zip(queries, newest.losses.tolist(), tops, spoken, strict=True)
    ]


def generated_query(
    loaded: LoadedModel, query: Query, max_new_tokens: int, seconds: float = float("inf")
) -> Query:
    """The query of a text as the prompt of the model's own greedy continuation, which is then attributed.

    Raises:
        UserError: as in `generate`, or the model ends the text at once.
    """
    if query.text is None or query.span is not None:
        raise UserError("the model can only continue a text; give text, without a completion or a span")
    generated = generate(loaded, query.text, max_new_tokens, seconds)
    if not generated.text:
        raise UserError("the model adds nothing to this text; give a text that it can continue")
    return Query(query.query_id, prompt=query.text, completion=generated.text)


def answer(
    index: Index, checkpoint: ModelConfig, query: Query, top_k: int, options: SearchOptions, *, explain: bool
) -> tuple[SpokenAnswer, dict[str, list[dict[str, Any]]]]:
    """How likely the model finds a query, and its proponents and opponents as plain values.

    With `explain` these have the parts of their scores.
    """
    (result,) = search_queries(index, checkpoint, [query], top_k, options)
    hits = {side: getattr(result.top, side) for side in _SIDES}
    rows = {side: [_row(rank, hit, result.details) for rank, hit in enumerate(hits[side], 1)] for side in _SIDES}
    if explain:
        ids = [hit.example_id for side in _SIDES for hit in hits[side]]
        training = index.training_shares(query, list(dict.fromkeys(ids)), checkpoint).tokens
        tokens, by_token = index.token_scores(query, ids, checkpoint)
        layers, by_layer = index.layer_scores(query, ids, model=checkpoint)
        for column, row in enumerate(row for side in _SIDES for row in rows[side]):
            row["tokens"] = list(zip(tokens, by_token[:, column].tolist(), strict=True))
            row["layers"] = dict(zip(layers, by_layer[:, column].tolist(), strict=True))
            shares = training.get(row["example_id"])
            row["training_tokens"] = None if shares is None else [_piece(row["text"], share) for share in shares]
    return result.spoken, rows


def _piece(text: str, token: TrainingToken) -> tuple[str, float]:
    return text[token.start : token.end], token.share


def _row(rank: int, hit: Scored, details: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = details[hit.example_id]
    return {
        "rank": rank, "example_id": hit.example_id, "score": hit.score,
        "uri": row["uri"], "row": row["row"], "text": row.get("text"),
        **({"turns": [asdict(turn) for turn in turns_from_json(row[TURNS])]} if TURNS in row else {}),
    }  # fmt: skip
