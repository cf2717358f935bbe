"""Index the shards of a plan that the table lacks, and commit them in waves; the caller says where this runs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorif_core.config import Config
from lorif_core.errors import IncompleteBuildError, LorifError, MemoryExhaustedError, ShardInputError, UserError
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.removal import apply_removals, clean_fragments, read_removals
from lorif_core.lifecycle.waves import Waves
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.storage.lease import Lease
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipts
from lorif_core.tables.store import Store

_LISTED = 10

RunLog = logging.Logger | logging.LoggerAdapter[logging.Logger]
"""Where a run is logged."""


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
    seconds: float = 0.0
    start_seconds: float = 0.0

    @property
    def version(self) -> int:
        """Version of the table `factors`."""
        return self.inventory.version


@dataclass(frozen=True, slots=True)
class FailedShard:
    """The key of a shard that failed every attempt, the cause, and the error itself if it is a LorifError."""

    shard: str
    cause: str
    fault: LorifError | None


def index_missing(
    config: Config,
    plan: BuildPlan,
    lease: Lease,
    publish_incomplete: bool,
    index_shards: Callable[[Sequence[ShardRef], Waves], Sequence[FailedShard]],
    log: RunLog,
) -> IndexedRows:
    """Index the shards that are not committed yet, commit them in waves, and delete rows outside the plan.

    Args:
        config: config of the build.
        plan: the shards to index and the rows to retain.
        lease: lease of the index, held by this process.
        publish_incomplete: continue without the shards that failed every attempt.
        index_shards: indexes some shards, adds them to the waves, and returns those that failed.
        log: the log of the run.

    Raises:
        IncompleteBuildError: shards failed every attempt; the message lists them, the others are committed.
        MemoryExhaustedError: memory ran out.
        LeaseHeldError: another process has taken over the index.
        StoreUnavailableError: the store keeps failing.
    """
    store, spec = Store(config.index, config.storage), plan.spec.hash
    lease.confirm()
    store.create(plan.spec)
    committed = store.rows.reconcile(plan.expected, plan.retained, plan.base_version)
    present = committed.keys
    waves = Waves(store, lease, spec, committed.version, len(present))
    missing = {shard.key for shard in plan.shards if (spec, shard.key) not in present}
    adopt(store, spec, missing, waves)
    adopted = missing & waves.shards.keys()
    if adopted:
        log.info("adopted %d shards that an earlier run had finished", len(adopted))
    pending = [shard for shard in plan.shards if shard.key in missing - adopted]
    failed = index_shards(pending, waves) if pending else []
    refuse_incomplete(plan, failed, publish_incomplete, log)
    # also without shards that a joined fragment of an earlier run had and the plan has not
    inventory = store.rows.reconcile(plan.expected, known=committed)
    _check_complete(inventory, present | {(spec, key) for key in missing if waves.shards.get(key)})
    inventory, removals = _apply_removals(store, plan, inventory, log)
    if inventory.rows == 0:
        raise no_scored_token(config)
    return IndexedRows(
        inventory,
        removals,
        tuple(store.rows.skipped(_files(plan))),
        (*plan.damaged, *((failure.shard, failure.cause) for failure in failed)),
        1 - waves.tokens / waves.padded_tokens if waves.padded_tokens else 0.0,
    )


def no_scored_token(config: Config) -> UserError:
    """The error of a corpus whose columns contain nothing to score."""
    return UserError(
        f"no example of the corpus {config.corpus.uri} has a scored token; check the columns that the section "
        f"corpus names"
    )


def adopt(store: Store, spec: str, missing: set[str], waves: Waves) -> None:
    """Commit the missing shards that an earlier run finished but did not commit, as one wave."""
    finished = Receipts(store.uri, store.storage).finished(spec, missing)
    waves.keep(DataFiles(store.uri, store.storage).adoptable(finished))
    waves.commit()


def _apply_removals(store: Store, plan: BuildPlan, inventory: Inventory, log: RunLog) -> tuple[Inventory, int]:
    """Delete rows that were removed on request, however they came back; returns also the number of requests."""
    removals = read_removals(store, plan.spec)
    if not removals.count:
        return inventory, 0
    generations = store.generations()
    inventory, deleted = apply_removals(
        store, removals, clean_fragments(store, generations[-1], removals) if generations else None
    )
    if deleted:
        log.info("%d rows that were removed on request are deleted again", deleted)
    return inventory, removals.count


def _files(plan: BuildPlan) -> set[FileTag]:
    return {shard.file for shard in plan.shards} | {parse_shard_key(shard)[0] for _, shard in plan.retained}


def refuse_incomplete(
    plan: BuildPlan, failed: Sequence[FailedShard], publish_incomplete: bool, log: RunLog
) -> None:
    """Raise an error that lists every missing shard; with `publish_incomplete` only log it."""
    causes = [f"{name} ({cause})" for name, cause in plan.damaged]
    causes += [f"{failure.shard} ({failure.cause})" for failure in failed]
    if not causes:
        return
    listed = "; ".join(causes[:_LISTED]) + (f"; and {len(causes) - _LISTED} more" if len(causes) > _LISTED else "")
    if publish_incomplete:
        log.warning("%d shards or files are quarantined and not published: %s", len(causes), listed)
        return
    for failure in failed:
        if isinstance(failure.fault, MemoryExhaustedError):  # no fault of the shard
            raise MemoryExhaustedError(
                f"{failure.fault}, or add --publish-incomplete to continue without {failure.shard}"
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
