"""What a newer generation of an index changed: its rows, its answers, and what it cost. Nothing but data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class PartDrift:
    """How far the rows of an older checkpoint have moved, and what becomes of them.

    `cosine` and `score_correlation` are means over `sampled` of `rows` rows; see `lifecycle.drift`.
    The measurement took `seconds`.
    """

    checkpoint: str
    rows: int
    sampled: int
    cosine: float
    score_correlation: float | None
    decision: Literal["follows", "refreshed"]
    seconds: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds that a stage of the update took, and that it would take in a rebuild, by an estimate."""

    stage: str
    update: float
    rebuild: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A proponent, and its rank in the former generation; None where that did not have the example."""

    example_id: str
    former: int | None


@dataclass(frozen=True, slots=True)
class QueryChange:
    """A query's strongest proponents now, in order, and its losses under both checkpoints."""

    query_id: str
    loss_before: float
    loss_after: float
    proponents: tuple[Standing, ...]

    @property
    def new(self) -> int:
        """Proponents that the former generation did not have."""
        return sum(standing.former is None for standing in self.proponents)

    @property
    def stayed(self) -> int:
        """Proponents that were among as many strongest ones."""
        most = len(self.proponents)
        return sum(standing.former is not None and standing.former <= most for standing in self.proponents)

    @property
    def risen(self) -> int:
        """Proponents that were there, but not among as many strongest ones."""
        return len(self.proponents) - self.new - self.stayed


@dataclass(frozen=True, slots=True)
class Change:
    """What an update made of a generation.

    Attributes:
        former: number of the generation before.
        rows_before: its rows.
        rows_after: rows of the newer one.
        rows_added: rows of new data.
        rows_refreshed: rows that were computed anew at the new checkpoint.
        bytes_before: measured bytes of all codes.
        bytes_after: those of the newer one.
        older_rows: what became of rows of older checkpoints.
        costs: by stage, whose sums are the whole of update and rebuild.
        queries: one per query, in order.
    """

    former: int
    rows_before: int
    rows_after: int
    rows_added: int
    rows_refreshed: int
    bytes_before: int
    bytes_after: int
    older_rows: tuple[PartDrift, ...]
    costs: tuple[StageCost, ...]
    queries: tuple[QueryChange, ...]

    @property
    def update_seconds(self) -> float:
        """Seconds of the update, all of it."""
        return sum(cost.update for cost in self.costs)

    @property
    def rebuild_seconds(self) -> float:
        """Seconds of a rebuild, by an estimate."""
        return sum(cost.rebuild for cost in self.costs)

    @property
    def new(self) -> int:
        """Strongest proponents of all queries that are new data."""
        return sum(query.new for query in self.queries)

    @property
    def risen(self) -> int:
        """Strongest proponents of all queries that were there, but not among the strongest."""
        return sum(query.risen for query in self.queries)

    @property
    def stayed(self) -> int:
        """Strongest proponents of all queries that were among the strongest."""
        return sum(query.stayed for query in self.queries)

    def former_ranks(self, query_id: str) -> dict[str, int | None]:
        """Of a query's strongest proponents, by example id."""
        standings = (query.proponents for query in self.queries if query.query_id == query_id)
        return {standing.example_id: standing.former for found in standings for standing in found}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "former_generation": self.former,
            "rows": {
                "before": self.rows_before, "after": self.rows_after, "added": self.rows_added,
                "refreshed": self.rows_refreshed,
            },
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "older_rows": [asdict(rows) for rows in self.older_rows],
            "update_seconds": {**{cost.stage: cost.update for cost in self.costs}, "all": self.update_seconds},
            "rebuild_seconds_estimated": {
                **{cost.stage: cost.rebuild for cost in self.costs}, "all": self.rebuild_seconds,
            },
            "proponents": {"new_data": self.new, "risen": self.risen, "stayed": self.stayed},
            "queries": [_told(query) for query in self.queries],
        }  # fmt: skip


def _told(query: QueryChange) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "loss_before": query.loss_before,
        "loss_after": query.loss_after,
        "proponents": [
            {"example_id": standing.example_id, "rank": rank, "former_rank": standing.former}
            for rank, standing in enumerate(query.proponents, start=1)
        ],
    }


def standings(former: Sequence[str], now: Sequence[str]) -> tuple[Standing, ...]:
    """Proponents of now with their former ranks.

    Args:
        former: ids of all examples that there were, strongest first.
        now: ids of the strongest ones now.
    """
    ranks = {example_id: rank for rank, example_id in enumerate(former, start=1)}
    return tuple(Standing(example_id, ranks.get(example_id)) for example_id in now)
