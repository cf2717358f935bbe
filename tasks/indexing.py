"""Indexing: the shards that a plan wants and the table has not, on all workers, committed in waves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import get_run_logger, task

from lorif_core.config import Config
from lorif_core.errors import IncompleteBuildError, ShardInputError, UserError
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.removal import honour, removals_of, trusted_by
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.storage.lease import Lease
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipts
from lorif_core.tables.store import Store
from tasks.actors import SHARDS_AT_ONCE, IndexActor, start
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress
from tasks.retry import RETRIED
from tasks.waves import Waves

_LISTED = 10


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """What the newest version of the factors holds after indexing, and what it cost."""

    inventory: Inventory
    removals: int
    skipped: tuple[tuple[str, str], ...]
    quarantined: tuple[tuple[str, str], ...]
    padding_waste: float
    seconds: float

    @property
    def version(self) -> int:
        """Of the factors."""
        return self.inventory.version


@task(name="index shards", **RETRIED)
def index_shards(config: Config, plan: BuildPlan, lease: Lease, publish_incomplete: bool) -> IndexedRows:
    """Index the shards that are not committed yet, commit them wave by wave, and take out what is not wanted.

    Args:
        config: the build's configuration.
        plan: what to index.
        lease: of the index, held by this process.
        publish_incomplete: go on without the shards that failed every attempt.

    Raises:
        IncompleteBuildError: shards failed every attempt; they are listed, the others are committed.
        LeaseHeldError: another process has taken the index over.
        StoreUnavailableError: the store keeps failing.
    """
    started = time.perf_counter()
    store, receipts = Store(config.index, config.storage), Receipts(config.index, config.storage)
    lease.confirm()
    store.create(plan.spec)
    settled = store.rows.settle(plan.wanted, plan.kept, plan.base_version)
    waves = Waves(store, receipts, lease, plan.spec.hash, settled.version)
    missing = [shard for shard in plan.shards if (plan.spec.hash, shard.key) not in settled.keys]
    finished = receipts.of_shards(plan.spec.hash, [shard.key for shard in missing])
    waves.adopt(DataFiles(config.index, config.storage).adoptable(finished))
    adopted = {receipt.shard for receipt in waves.committed}
    if adopted:
        get_run_logger().info("%d shards that an earlier run had finished are adopted", len(adopted))
    pending = [shard for shard in missing if shard.key not in adopted]
    failed = _index_pending(config, plan, pending, waves) if pending else []
    _refuse_incomplete(plan, failed, publish_incomplete)
    inventory = store.rows.inventory(known=settled)
    committed = {(plan.spec.hash, receipt.shard) for receipt in waves.committed if receipt.rows}
    _check_complete(inventory, settled.keys | committed)
    inventory, removals = _honour_removals(store, plan, inventory)
    if inventory.rows == 0:
        raise UserError(f"no example of the corpus {config.corpus.uri} has a scored token; check its columns")
    run = sum(receipt.tokens for receipt in waves.committed)
    padded = sum(receipt.padded_tokens for receipt in waves.committed)
    return IndexedRows(
        inventory,
        removals,
        tuple(store.rows.skipped(_files(plan))),
        (*plan.damaged, *((failure.item.key, failure.cause) for failure in failed)),
        1 - run / padded if padded else 0.0,
        time.perf_counter() - started,
    )


def _honour_removals(store: Store, plan: BuildPlan, inventory: Inventory) -> tuple[Inventory, int]:
    """Without rows that were removed on request, whichever way they came in; and how many requests there were."""
    removals = removals_of(store, plan.spec)
    if not removals.count:
        return inventory, 0
    generations = store.generations()
    inventory, gone = honour(
        store, removals, trusted_by(store, generations[-1], removals) if generations else None
    )
    if gone:
        get_run_logger().info("%d rows that were removed on request are taken out", gone)
    return inventory, removals.count


def _files(plan: BuildPlan) -> set[FileTag]:
    return {shard.file for shard in plan.shards} | {parse_shard_key(shard)[0] for _, shard in plan.kept}


def _index_pending(config: Config, plan: BuildPlan, pending: Sequence[ShardRef], waves: Waves) -> list[Failed]:
    """Index shards on all workers and commit them; those that failed every attempt."""
    failed: list[Failed] = []
    done = plan.rows - sum(shard.rows for shard in pending)
    with cluster(config.compute) as resources, Progress("index shards", plan.rows, done) as progress:
        spec = plan.spec.to_json()
        count = min(resources.workers, len(pending))
        with Workers(lambda: start(IndexActor, resources, config, spec, with_model=True), count) as workers:
            share = -(-len(pending) // count)  # of a few shards the first worker must not take all
            outcomes = workers.run(
                pending,
                lambda actor, shard: actor.index.remote(shard),
                in_flight=min(SHARDS_AT_ONCE, share),
            )
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    failed.append(outcome)
                else:
                    progress.advance(outcome.item.rows, outcome.result.tokens)
                    waves.add(outcome.result)
        waves.commit()
    return failed


def _refuse_incomplete(plan: BuildPlan, failed: Sequence[Failed], publish_incomplete: bool) -> None:
    """Never a silent partial index: what is missing is listed, and left out only on demand."""
    causes = [f"{name} ({cause})" for name, cause in plan.damaged]
    causes += [f"{failure.item.key} ({failure.cause})" for failure in failed]
    if not causes:
        return
    listed = "; ".join(causes[:_LISTED]) + (f"; and {len(causes) - _LISTED} more" if len(causes) > _LISTED else "")
    if publish_incomplete:
        get_run_logger().warning("%d quarantined, and published without: %s", len(causes), listed)
        return
    input_only = all(isinstance(failure.fault, ShardInputError) for failure in failed)
    raise IncompleteBuildError(
        f"{len(causes)} shards or files are quarantined, nothing was published: {listed}; mend them and run the "
        f"build again, it resumes, or add --publish-incomplete to go on without them",
        exit_code=2 if input_only else 1,
    )


def _check_complete(inventory: Inventory, expected: set[ShardKey]) -> None:
    missing = expected - inventory.keys
    if missing:
        listed = "; ".join(sorted(shard for _, shard in missing)[:_LISTED])
        raise IncompleteBuildError(
            f"{len(missing)} indexed shards are not in the table, nothing was published: {listed}; run the build "
            f"again, it resumes"
        )
