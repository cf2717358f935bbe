"""The demo's two acts, each a generation and its answers to the same queries, and the changes between them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from lorif_core.config import Config
from lorif_core.report.batch_run import BatchRun
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change, PartDrift, QueryChange, Recorded, StageCost, with_former_ranks
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.queries import Query
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.attribute import attribute_queries

_REST = "plan, publish"
_PER_TOKEN = frozenset({"index", "curvature"})  # calibration has a small sample, so its time does not grow


@dataclass(frozen=True, slots=True)
class Act:
    """A generation and its answers with all rows ranked.

    Attributes:
        stages: seconds of each stage that made the generation.
        query_seconds: seconds of attribution.
    """

    generation: Generation
    answers: list[Attribution]
    stages: Mapping[str, float]
    query_seconds: float

    @property
    def build_seconds(self) -> float:
        """Seconds that making the generation took."""
        return sum(self.stages.values())

    def first(self, k: int) -> list[Attribution]:
        """The answers, each cut to the first `k` proponents and opponents."""
        return [replace(answer, top=answer.top.first(k)) for answer in self.answers]


def run_act(
    config: Config,
    make: Callable[[Config], Generation],
    queries: Sequence[Query],
    out: Path,
    explained: int = QUERIES_EXPLAINED,
    before: Mapping[str, float] = MappingProxyType({}),
) -> Act:
    """Make a generation and attribute the queries against it; `out` has the answers while the act runs.

    The first `explained` answers get explanations. `before` has the seconds of what was done for it earlier.
    """
    started = time.perf_counter()
    generation = make(config)
    stages = {**before, **generation.timings}
    stages[_REST] = stages.get(_REST, 0.0) + time.perf_counter() - started - sum(generation.timings.values())
    started = time.perf_counter()
    run = BatchRun(config, queries, generation.rows, str(out), generation, explained=explained)
    attribute_queries(config, run)
    answers = list(run.answers())
    run.clean_up()
    return Act(generation, answers, stages, time.perf_counter() - started)


def compare_acts(config: Config, before: Act, after: Act, recorded: Generation, k: int) -> Change:
    """The changes from the first act to the second, with `k` proponents per query.

    Args:
        config: the demo's CONFIG.
        before: the act with the build.
        after: the act with the update.
        recorded: the generation between them, which was recorded during training.
        k: proponents per query.
    """
    rows = Store(config.index, config.storage).rows
    first, last = recorded.changes["recorded"]["steps"]
    return Change(
        former_generation=before.generation.generation,
        rows_before=before.generation.rows,
        rows_after=after.generation.rows,
        rows_added=after.generation.rows - before.generation.rows,
        rows_refreshed=after.generation.changes["rows_refreshed"],
        bytes_before=rows.code_bytes(before.generation.factors_version),
        bytes_after=rows.code_bytes(after.generation.factors_version),
        older_rows=tuple(PartDrift(**drift) for drift in after.generation.changes["older_rows"]),
        costs=tuple(stage_costs(before, after)),
        queries=tuple(compare(before.answers, after.answers, k)),
        recorded=Recorded(recorded.generation, recorded.rows, first, last),
    )


def compare(before: Sequence[Attribution], after: Sequence[Attribution], k: int) -> Iterator[QueryChange]:
    """Compare answers to the same queries; `before` must rank every row that existed then."""
    for old, new in zip(before, after, strict=True):
        former, current = ([hit.example_id for hit in answer.top.proponents] for answer in (old, new))
        yield QueryChange(new.query.query_id, old.loss, new.loss, with_former_ranks(former, current[:k]))


def stage_costs(before: Act, after: Act) -> Iterator[StageCost]:
    """Seconds of each stage of the later act, and of a rebuild: those of the first build, scaled to all tokens."""
    growth = after.generation.tokens / before.generation.tokens
    stages = dict.fromkeys([*after.stages, *before.stages])
    for stage in [*(stage for stage in stages if stage != _REST), _REST]:
        rebuilt = before.stages.get(stage, 0.0) * (growth if stage in _PER_TOKEN else 1.0)
        yield StageCost(stage, after.stages.get(stage, 0.0), rebuilt)
