"""Data on the changes from one generation of an index to a later one: rows, answers and costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

RECORDING = "record: "
"""What the names of the stages of a recording begin with."""

_OF_A_PASS = frozenset({"calibrate", "index"})


@dataclass(frozen=True, slots=True)
class PartDrift:
    """Drift of the rows of an older checkpoint, and the decision about them.

    `cosine` and `score_correlation` are means over `sampled` of `rows` rows; see `lifecycle.drift`.
    `seconds` is the duration of the measurement.
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
    """Seconds of a stage: measured in the update, and estimated for a rebuild."""

    stage: str
    update: float
    rebuild: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """A generation that a training left behind: its number, its rows, and the first and the last of its steps."""

    generation: int
    rows: int
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True)
class RankedProponent:
    """A proponent and its rank in the former generation; None if that generation did not have the example."""

    example_id: str
    former_rank: int | None


@dataclass(frozen=True, slots=True)
class QueryChange:
    """A query's strongest proponents in the later generation, in order, and its loss under both checkpoints."""

    query_id: str
    loss_before: float
    loss_after: float
    proponents: tuple[RankedProponent, ...]

    @property
    def new(self) -> int:
        """Number of proponents that the former generation did not have."""
        return sum(proponent.former_rank is None for proponent in self.proponents)

    @property
    def stayed(self) -> int:
        """Number of proponents that the former generation ranked among its first k, k being their number."""
        ranks = (proponent.former_rank for proponent in self.proponents)
        return sum(rank is not None and rank <= len(self.proponents) for rank in ranks)

    @property
    def risen(self) -> int:
        """Number of proponents that the former generation had, but ranked lower than its first k."""
        return len(self.proponents) - self.new - self.stayed


@dataclass(frozen=True, slots=True)
class Change:
    """Changes that an update made.

    Attributes:
        former_generation: number of the generation before the update.
        rows_before: rows before the update.
        rows_after: rows after the update.
        rows_added: rows of new data.
        rows_refreshed: rows recomputed at the new checkpoint.
        bytes_before: measured bytes of all codes before the update.
        bytes_after: measured bytes of all codes after the update.
        older_rows: drift of the rows of older checkpoints.
        costs: by stage; they add up to the total costs of update and rebuild.
        queries: one per query, in order.
        recorded: the generation between the two, if a training recorded one.
    """

    former_generation: int
    rows_before: int
    rows_after: int
    rows_added: int
    rows_refreshed: int
    bytes_before: int
    bytes_after: int
    older_rows: tuple[PartDrift, ...]
    costs: tuple[StageCost, ...]
    queries: tuple[QueryChange, ...]
    recorded: Recorded | None = None

    @property
    def update_seconds(self) -> float:
        """Total seconds of the update."""
        return sum(cost.update for cost in self.costs)

    @property
    def rebuild_seconds(self) -> float:
        """Estimated total seconds of a rebuild."""
        return sum(cost.rebuild for cost in self.costs)

    @property
    def recording_seconds(self) -> float:
        """Seconds that recording added to the training."""
        return sum(cost.update for cost in self.costs if cost.stage.startswith(RECORDING))

    @property
    def pass_seconds(self) -> float:
        """Estimated seconds of the passes of a build over the corpus; its workers run at the same time."""
        return sum(cost.rebuild for cost in self.costs if cost.stage in _OF_A_PASS)

    @property
    def saved(self) -> float:
        """Share of these seconds that recording saved; negative if recording took longer."""
        return 1 - self.recording_seconds / self.pass_seconds if self.pass_seconds else 0.0

    @property
    def new(self) -> int:
        """Number of strongest proponents that are new data, over all queries."""
        return sum(query.new for query in self.queries)

    @property
    def risen(self) -> int:
        """Number of strongest proponents that rose from lower ranks, over all queries."""
        return sum(query.risen for query in self.queries)

    @property
    def stayed(self) -> int:
        """Number of strongest proponents that were among the strongest before, over all queries."""
        return sum(query.stayed for query in self.queries)

    def former_ranks(self, query_id: str) -> dict[str, int | None]:
        """Former ranks of a query's strongest proponents, by example id."""
        return {
            proponent.example_id: proponent.former_rank
            for query in self.queries
            if query.query_id == query_id
            for proponent in query.proponents
        }

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can encode."""
        return {
            "former_generation": self.former_generation,
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
            "queries": [_query_dict(query) for query in self.queries],
            **self._recording(),
        }  # fmt: skip

    def _recording(self) -> dict[str, Any]:
        if self.recorded is None:
            return {}
        seconds = {"recording_seconds": self.recording_seconds, "pass_seconds_estimated": self.pass_seconds}
        return {"recorded": {**asdict(self.recorded), **seconds, "saved": self.saved}}


def _query_dict(query: QueryChange) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "loss_before": query.loss_before,
        "loss_after": query.loss_after,
        "proponents": [
            {"example_id": proponent.example_id, "rank": rank, "former_rank": proponent.former_rank}
            for rank, proponent in enumerate(query.proponents, start=1)
        ],
    }


def with_former_ranks(former: Sequence[str], current: Sequence[str]) -> tuple[RankedProponent, ...]:
    """Add the former ranks to the current proponents.

    Args:
        former: ids of all examples of the former generation, strongest first.
        current: ids of the strongest proponents of the current one.
    """
    ranks = {example_id: rank for rank, example_id in enumerate(former, start=1)}
    return tuple(RankedProponent(example_id, ranks.get(example_id)) for example_id in current)
