"""Indexing: all workers index the shards of a plan that the table lacks; the driver commits them in waves."""

from collections.abc import Sequence
from dataclasses import replace

from lorif_core.config import Config
from lorif_core.lifecycle.indexing import FailedShard, IndexedRows, index_missing
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.waves import Waves
from lorif_core.spec import ShardRef
from lorif_core.storage.lease import Lease
from lorif_core.tables.receipts import Receipt
from tasks.dispatch import Done, Failed
from tasks.model_workers import ModelWorkers
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.workers.host import CALLS_AT_ONCE


@task("index shards", retried=True)
def index_shards(
    config: Config, plan: BuildPlan, lease: Lease, publish_incomplete: bool, model_workers: ModelWorkers
) -> IndexedRows:
    """Index the shards that are not committed yet, commit them in waves, and delete rows outside the plan.

    Args:
        config: config of the build.
        plan: the shards to index and the rows to retain.
        lease: lease of the index, held by this process.
        publish_incomplete: continue without the shards that failed every attempt.
        model_workers: workers of the flow.

    Raises:
        IncompleteBuildError: shards failed every attempt; the message lists them, the others are committed.
        MemoryExhaustedError: workers ran out of memory.
        LeaseHeldError: another process has taken over the index.
        StoreUnavailableError: the store keeps failing.
    """
    started = model_workers.clock()
    indexed = index_missing(
        config, plan, lease, publish_incomplete,
        lambda pending, waves: _index_pending(plan, pending, waves, model_workers), run_log(),
    )  # fmt: skip
    seconds = model_workers.clock() - started
    return replace(indexed, seconds=seconds, start_seconds=model_workers.start_seconds)


def _index_pending(
    plan: BuildPlan, pending: Sequence[ShardRef], waves: Waves, model_workers: ModelWorkers
) -> list[FailedShard]:
    """Index shards on all workers and commit them; returns those that failed every attempt."""
    failed: list[FailedShard] = []
    done = plan.rows - sum(shard.rows for shard in pending)
    spec_json = plan.spec.to_json()
    with model_workers.step(plan.spec, len(pending)) as workers:
        share = -(-len(pending) // workers.count)  # so that the first worker does not take all of a few shards
        with Progress("index shards", plan.rows, done) as progress:
            outcomes = workers.run(
                pending,
                lambda host, item: host.call("index" if isinstance(item, ShardRef) else "join", spec_json, item),
                in_flight=min(CALLS_AT_ONCE, share),
            )
            unfinished = len(pending)
            for outcome in outcomes:
                group: tuple[Receipt, ...] = ()
                if not isinstance(outcome.item, ShardRef):
                    _keep_joined(outcome, waves)
                    continue
                unfinished -= 1
                if isinstance(outcome, Failed):
                    failed.append(FailedShard(outcome.item.key, outcome.cause, outcome.fault))
                else:
                    progress.advance(outcome.item.rows, outcome.result.tokens)
                    group = waves.add(outcome.result)
                for shards in (group, () if unfinished else waves.rest()):
                    if shards:
                        workers.add(shards)
    waves.commit()
    return failed


def _keep_joined(outcome: Done | Failed, waves: Waves) -> None:
    """Add joined shards; shards that could not be joined stay in fragments of their own."""
    if isinstance(outcome, Done):
        waves.add_joined(outcome.item, outcome.result)
    else:
        run_log().warning("%d shards stay in small fragments: %s", len(outcome.item), outcome.cause)
        waves.keep(outcome.item)
