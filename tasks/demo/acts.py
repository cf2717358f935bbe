"""The demo's two acts, each a generation and its answers to the same queries, and the changes between them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorif_core.config import Config
from lorif_core.report.batch_run import BatchRun
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change, PartDrift, QueryChange, StageCost, with_former_ranks
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.queries import Query
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.attribute import attribute_queries

_REST = "plan, publish"
_PER_TOKEN = frozenset({"index", "curvature"})  # calibration has a small sample, so its time does not grow


@dataclass(frozen=True, slots=True)
class Act:
    """A generation, its answers with all rows ranked, and the seconds of building it and of attribution."""

    generation: Generation
    answers: list[Attribution]
    build_seconds: float
    query_seconds: float

    def first(self, k: int) -> list[Attribution]:
        """The answers, each cut to the first `k` proponents and opponents."""
        return [replace(answer, top=answer.top.first(k)) for answer in self.answers]


def run_act(
    config: Config,
    make: Callable[[Config], Generation],
    queries: Sequence[Query],
    out: Path,
    explained: int = QUERIES_EXPLAINED,
) -> Act:
    """Make a generation and attribute the queries against it; `out` has the answers while the act runs.

    The first `explained` answers get explanations.
    """
    started = time.perf_counter()
    generation = make(config)
    build_seconds, started = time.perf_counter() - started, time.perf_counter()
    run = BatchRun(config, queries, generation.rows, str(out), generation, explained=explained)
    attribute_queries(config, run)
    answers = list(run.answers())
    run.clean_up()
    return Act(generation, answers, build_seconds, time.perf_counter() - started)


def compare_acts(config: Config, before: Act, after: Act, k: int) -> Change:
    """The changes from the first act to the second, with `k` proponents per query."""
    store = Store(config.index, config.storage)
    changes = after.generation.changes
    return Change(
        former_generation=before.generation.generation,
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
    """Compare answers to the same queries; `before` must rank every row that existed then."""
    for old, new in zip(before, after, strict=True):
        former, current = ([hit.example_id for hit in answer.top.proponents] for answer in (old, new))
        yield QueryChange(new.query.query_id, old.loss, new.loss, with_former_ranks(former, current[:k]))


def stage_costs(before: Act, after: Act) -> Iterator[StageCost]:
    """Seconds of each stage of the update, and of a rebuild: those of the first build, scaled to all tokens."""
    growth = after.generation.tokens / before.generation.tokens
    built, updated = _stages(before), _stages(after)
    for stage in dict.fromkeys([*updated, *built]):
        rebuilt = built.get(stage, 0.0) * (growth if stage in _PER_TOKEN else 1.0)
        yield StageCost(stage, updated.get(stage, 0.0), rebuilt)


def _stages(act: Act) -> dict[str, float]:
    """Seconds of each stage; the rest of the total comes last."""
    timings = act.generation.timings
    return {**timings, _REST: act.build_seconds - sum(timings.values())}
