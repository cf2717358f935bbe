"""Answers of one block of queries as a parquet file. A batch attribution stores them until all blocks are done."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorif_core.report.answer_sections import SourceTotal
from lorif_core.search.distribution import Distribution
from lorif_core.search.explanation import Explanation
from lorif_core.search.likelihood import NOT_SPOKEN, AnswerToken, Likelihood, SpokenAnswer
from lorif_core.search.queries import Query
from lorif_core.search.shares import LayerShare, TrainingToken
from lorif_core.search.top_k import Scored, TopK

_HITS = pa.list_(pa.struct([("score", pa.float32()), ("example_id", pa.string())]))
_CONTRIBUTIONS = pa.list_(pa.struct([("example_id", pa.string()), ("contributions", pa.list_(pa.float32()))]))
_TRAINING_TOKENS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("share", pa.float64())]))
_LAYERS = pa.list_(
    pa.struct([("layer", pa.string()), ("block", pa.int32()), ("kind", pa.string()), ("share", pa.float64())])
)
_EXPLANATION = pa.struct(
    [
        ("tokens", pa.list_(pa.string())), ("by_example", _CONTRIBUTIONS), ("reason", pa.string()),
        ("training_tokens", pa.map_(pa.string(), _TRAINING_TOKENS)), ("layers", pa.map_(pa.string(), _LAYERS)),
        ("unshaded", pa.string()),
    ]
)  # fmt: skip
_SPOKEN = pa.struct(
    [
        ("tokens", pa.list_(pa.struct([("text", pa.string()), ("loss", pa.float64())]))),
        (
            "likelihood",
            pa.struct(
                [
                    ("nats_per_token", pa.float64()), ("own_nats_per_token", pa.float64()), ("words", pa.string()),
                ]
            ),
        ),
    ]
)  # fmt: skip
_DISTRIBUTION = pa.struct(
    [("edges", pa.list_(pa.float64())), ("counts", pa.list_(pa.int64())), ("scores", pa.string())]
)
_TOTALS = pa.list_(
    pa.struct(
        [
            ("uri", pa.string()), ("rows", pa.int64()), ("positive", pa.float64()), ("negative", pa.float64()),
            ("corpus_share", pa.float64()), ("influence_share", pa.float64()),
        ]
    )
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()), ("loss", pa.float64()), ("proponents", _HITS), ("opponents", _HITS),
        ("explanation", _EXPLANATION), ("spoken", _SPOKEN), ("distribution", _DISTRIBUTION), ("totals", _TOTALS),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribution:
    """Answer to one query: its token-summed loss, both ends of the ranking, and the explanation if requested.

    `distribution` is that of the scores of all rows. `spoken` has the losses of the query's tokens. `totals` are
    the sums over all rows by file. Each of them may be missing.
    """

    query: Query
    loss: float
    top: TopK
    explanation: Explanation | None = None
    spoken: SpokenAnswer = NOT_SPOKEN
    distribution: Distribution | None = None
    totals: tuple[SourceTotal, ...] | None = None

    @property
    def example_ids(self) -> list[str]:
        """Ids of the proponents, then of the opponents."""
        return [hit.example_id for hit in (*self.top.proponents, *self.top.opponents)]


def to_parquet(answers: Sequence[Attribution]) -> bytes:
    """Encode the answers of a block as the content of a parquet file."""
    rows = [
        {
            "query_id": answer.query.query_id,
            "loss": answer.loss,
            "proponents": [asdict(hit) for hit in answer.top.proponents],
            "opponents": [asdict(hit) for hit in answer.top.opponents],
            "explanation": None if answer.explanation is None else _explanation_row(answer.explanation),
            "spoken": asdict(answer.spoken),
            "distribution": None if answer.distribution is None else asdict(answer.distribution),
            "totals": None if answer.totals is None else [asdict(total) for total in answer.totals],
        }
        for answer in answers
    ]
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), content)
    return content.getvalue().to_pybytes()


def from_parquet(content: bytes | None, queries: Sequence[Query], k: int) -> list[Attribution] | None:
    """Decode the answers to these queries; None if the file is missing, damaged, or of other queries."""
    try:
        rows = pq.read_table(pa.BufferReader(content or b"")).to_pylist()
    except pa.ArrowException:
        return None
    if [row["query_id"] for row in rows] != [query.query_id for query in queries]:
        return None
    return [_answer(query, row, k) for query, row in zip(queries, rows, strict=True)]


def _answer(query: Query, row: dict[str, Any], k: int) -> Attribution:
    proponents, opponents = ([Scored(**hit) for hit in row[end]] for end in ("proponents", "opponents"))
    spoken, counted = row["spoken"], row["distribution"]
    return Attribution(
        query,
        row["loss"],
        TopK(k, proponents, opponents),
        _explanation(row["explanation"]),
        SpokenAnswer(
            tuple(AnswerToken(**token) for token in spoken["tokens"]),
            None if spoken["likelihood"] is None else Likelihood(**spoken["likelihood"]),
        ),
        None
        if counted is None
        else Distribution(tuple(counted["edges"]), tuple(counted["counts"]), counted["scores"]),
        None if row["totals"] is None else tuple(SourceTotal(**total) for total in row["totals"]),
    )


def _explanation_row(explanation: Explanation) -> dict[str, Any]:
    by_example = [
        {"example_id": example_id, "contributions": contributions_T.tolist()}
        for example_id, contributions_T in explanation.by_example.items()
    ]
    return {
        "tokens": list(explanation.tokens), "by_example": by_example, "reason": explanation.reason,
        "training_tokens": _as_rows(explanation.training_tokens), "layers": _as_rows(explanation.layers),
        "unshaded": explanation.unshaded,
    }  # fmt: skip


def _as_rows(shares: Mapping[str, Sequence[TrainingToken | LayerShare]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(example_id, [asdict(share) for share in of_example]) for example_id, of_example in shares.items()]


def _explanation(row: dict[str, Any] | None) -> Explanation | None:
    if row is None:
        return None
    by_example = {hit["example_id"]: np.array(hit["contributions"], np.float32) for hit in row["by_example"]}
    tokens = {name: tuple(TrainingToken(**share) for share in shares) for name, shares in row["training_tokens"]}
    layers = {name: tuple(LayerShare(**share) for share in shares) for name, shares in row["layers"]}
    return Explanation(tuple(row["tokens"]), by_example, row["reason"], tokens, layers, row["unshaded"])
