"""Indexing: all workers index the shards of a plan that the table lacks; the driver commits them in waves."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core.config import Config
from lorif_core.errors import IncompleteBuildError, MemoryExhaustedError, ShardInputError, UserError
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.removal import apply_removals, clean_fragments, read_removals
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.storage.lease import Lease
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.store import Store
from tasks.dispatch import Done, Failed
from tasks.model_workers import ModelWorkers
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.waves import Waves
from tasks.workers.host import CALLS_AT_ONCE

_LISTED = 10


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """The contents of the newest version of the factors after indexing, and the cost.

    `removals` is the number of removal requests that were applied, `skipped` has pairs (example id, reason) and
    `quarantined` pairs (shard, cause). `start_seconds` is the time until workers had loaded the model, whichever
    step waited for them; `seconds` has the rest.
    """

    inventory: Inventory
    removals: int
    skipped: tuple[tuple[str, str], ...]
    quarantined: tuple[tuple[str, str], ...]
    padding_waste: float
    seconds: float
    start_seconds: float

    @property
    def version(self) -> int:
        """Version of the table `factors`."""
        return self.inventory.version


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
    store, spec = Store(config.index, config.storage), plan.spec.hash
    lease.confirm()
    store.create(plan.spec)
    committed = store.rows.reconcile(plan.expected, plan.retained, plan.base_version)
    present = committed.keys
    waves = Waves(store, lease, spec, committed.version, len(present))
    missing = {shard.key for shard in plan.shards if (spec, shard.key) not in present}
    _adopt(store, spec, missing, waves)
    adopted = missing & waves.shards.keys()
    if adopted:
        run_log().info("adopted %d shards that an earlier run had finished", len(adopted))
    pending = [shard for shard in plan.shards if shard.key in missing - adopted]
    failed = _index_pending(plan, pending, waves, model_workers) if pending else []
    _refuse_incomplete(plan, failed, publish_incomplete)
    # also without shards that a joined fragment of an earlier run had and the plan has not
    inventory = store.rows.reconcile(plan.expected, known=committed)
    _check_complete(inventory, present | {(spec, key) for key in missing if waves.shards.get(key)})
    inventory, removals = _apply_removals(store, plan, inventory)
    if inventory.rows == 0:
        raise UserError(
            f"no example of the corpus {config.corpus.uri} has a scored token; check the columns that the section "
            f"corpus names"
        )
    return IndexedRows(
        inventory,
        removals,
        tuple(store.rows.skipped(_files(plan))),
        (*plan.damaged, *((failure.item.key, failure.cause) for failure in failed)),
        1 - waves.tokens / waves.padded_tokens if waves.padded_tokens else 0.0,
        model_workers.clock() - started,
        model_workers.start_seconds,
    )


def _adopt(store: Store, spec: str, missing: set[str], waves: Waves) -> None:
    """Commit the missing shards that an earlier run finished but did not commit, as one wave."""
    finished = Receipts(store.uri, store.storage).finished(spec, missing)
    waves.keep(DataFiles(store.uri, store.storage).adoptable(finished))
    waves.commit()


def _apply_removals(store: Store, plan: BuildPlan, inventory: Inventory) -> tuple[Inventory, int]:
    """Delete rows that were removed on request, however they came back; returns also the number of requests."""
    removals = read_removals(store, plan.spec)
    if not removals.count:
        return inventory, 0
    generations = store.generations()
    inventory, deleted = apply_removals(
        store, removals, clean_fragments(store, generations[-1], removals) if generations else None
    )
    if deleted:
        run_log().info("%d rows that were removed on request are deleted again", deleted)
    return inventory, removals.count


def _files(plan: BuildPlan) -> set[FileTag]:
    return {shard.file for shard in plan.shards} | {parse_shard_key(shard)[0] for _, shard in plan.retained}


def _index_pending(
    plan: BuildPlan, pending: Sequence[ShardRef], waves: Waves, model_workers: ModelWorkers
) -> list[Failed]:
    """Index shards on all workers and commit them; returns those that failed every attempt."""
    failed: list[Failed] = []
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
                    failed.append(outcome)
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


def _refuse_incomplete(plan: BuildPlan, failed: Sequence[Failed], publish_incomplete: bool) -> None:
    """Raise an error that lists every missing shard; with `publish_incomplete` only log it."""
    causes = [f"{name} ({cause})" for name, cause in plan.damaged]
    causes += [f"{failure.item.key} ({failure.cause})" for failure in failed]
    if not causes:
        return
    listed = "; ".join(causes[:_LISTED]) + (f"; and {len(causes) - _LISTED} more" if len(causes) > _LISTED else "")
    if publish_incomplete:
        run_log().warning("%d shards or files are quarantined and not published: %s", len(causes), listed)
        return
    for failure in failed:
        if isinstance(failure.fault, MemoryExhaustedError):  # no fault of the shard
            raise MemoryExhaustedError(
                f"{failure.fault}, or add --publish-incomplete to continue without {failure.item.key}"
            )
    input_only = all(isinstance(failure.fault, ShardInputError) for failure in failed)
    raise IncompleteBuildError(
        f"{len(causes)} shards or files are quarantined, and nothing was published: {listed}; repair them and run "
        f"the build again to resume, or add --publish-incomplete to continue without them",
        exit_code=2 if input_only else 1,
    )


def _check_complete(inventory: Inventory, expected: set[ShardKey]) -> None:
    missing = expected - inventory.keys
    if missing:
        listed = "; ".join(sorted(shard for _, shard in missing)[:_LISTED])
        raise IncompleteBuildError(
            f"{len(missing)} indexed shards are not in the table, and nothing was published: {listed}; run the "
            f"build again to resume"
        )
