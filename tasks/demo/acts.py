"""The demo's two acts, each a generation and the answers that it gives, and what changed from one to the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorif_core.config import Config
from lorif_core.report.batch_run import Unfinished
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change, PartDrift, QueryChange, StageCost, standings
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.queries import Query
from lorif_core.search.top_k import TopK
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.attribute import attribute_queries

_REST = "plan, publish"
_GROWING = frozenset({"index", "curvature"})  # with the tokens; calibration takes a sample of a fixed size


@dataclass(frozen=True, slots=True)
class Act:
    """A generation, and its answers with all of its rows ranked; seconds of making it and of asking it."""

    generation: Generation
    answers: list[Attribution]
    made: float
    asked: float

    def first(self, k: int) -> list[Attribution]:
        """The answers with both ends of the ranking only."""
        return [
            replace(answer, top=TopK(k, answer.top.proponents[:k], answer.top.opponents[:k]))
            for answer in self.answers
        ]


def act(
    config: Config,
    make: Callable[[Config], Generation],
    queries: Sequence[Query],
    out: Path,
    explained: int = QUERIES_EXPLAINED,
) -> Act:
    """Make a generation, and ask it; answers lie in `out` while they come, so many of them explained."""
    started = time.perf_counter()
    generation = make(config)
    made = time.perf_counter()
    run = Unfinished(config, queries, generation.rows, str(out), generation, explained=explained)
    attribute_queries(config, run)
    answers = list(run.answers())
    run.finish()
    return Act(generation, answers, made - started, time.perf_counter() - made)


def what_changed(config: Config, before: Act, after: Act, k: int) -> Change:
    """The second act next to the first, with `k` proponents of every query."""
    store = Store(config.index, config.storage)
    changes = after.generation.changes
    return Change(
        former=before.generation.generation,
        rows_before=before.generation.rows,
        rows_after=after.generation.rows,
        rows_added=changes["rows_added"],
        rows_refreshed=changes["rows_refreshed"],
        bytes_before=store.rows.code_bytes(before.generation.factors_version),
        bytes_after=store.rows.code_bytes(after.generation.factors_version),
        older_rows=tuple(PartDrift(**drift) for drift in changes["older_rows"]),
        costs=tuple(stage_costs(before, after)),
        queries=tuple(compare(before.answers, after.answers, k)),
    )  # fmt: skip


def compare(before: Sequence[Attribution], after: Sequence[Attribution], k: int) -> Iterator[QueryChange]:
    """Answers to the same queries, those of `before` with every row that there was."""
    for old, new in zip(before, after, strict=True):
        former, now = ([hit.example_id for hit in answer.top.proponents] for answer in (old, new))
        yield QueryChange(new.query.query_id, old.loss, new.loss, standings(former, now[:k]))


def stage_costs(before: Act, after: Act) -> Iterator[StageCost]:
    """What the update took by stage, and what a rebuild would: the first build's seconds per token, times all."""
    growth = after.generation.tokens / before.generation.tokens
    built, updated = _stages(before), _stages(after)
    for stage in dict.fromkeys([*updated, *built]):
        rebuilt = built.get(stage, 0.0) * (growth if stage in _GROWING else 1.0)
        yield StageCost(stage, updated.get(stage, 0.0), rebuilt)


def _stages(one: Act) -> dict[str, float]:
    """Seconds of the stages; what their sum lacks of the whole comes last."""
    timings = one.generation.timings
    return {**timings, _REST: one.made - sum(timings.values())}
