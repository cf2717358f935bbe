"""The steps of an update that a build lacks: compare, update the covariances, publish the changes."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from lorif_core.config import Config
from lorif_core.curvature.metric import Drift, drift
from lorif_core.lifecycle.calibrate import Mixture, calibration_sample, sample_size
from lorif_core.lifecycle.compaction import compact_rows
from lorif_core.lifecycle.curvature_fit import Fit
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.publishing import new_part
from lorif_core.lifecycle.update import UpdatePlan, make_update_plan
from lorif_core.report.changes import PartDrift
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.calibrate import measure
from tasks.listing import list_on_workers
from tasks.model_workers import ModelWorkers
from tasks.orchestration import run_log, task
from tasks.publish import publish

_SURPLUS_FRAGMENTS = 32  # that joining small fragments must save
_MIN_EXAMPLES = 32  # of new data, for measuring covariances


@dataclass(frozen=True, slots=True)
class Metric:
    """The covariances that queries are folded with, their drift from the whitening, and the seconds it took."""

    name: str | None
    drift: Drift | None
    seconds: float = 0.0


@task("plan update")
def plan_update(config: Config, remove_vanished: bool, within: str) -> UpdatePlan:
    """Compare the corpus with the index, and log the plan."""
    log = run_log()
    plan = make_update_plan(config, remove_vanished, within, list_on_workers(config))
    changes = plan.changes
    log.info(
        "generation %d against the corpus: %d files new, %d changed, %d moved, %d vanished; %d records in %d "
        "shards to index, %d rows leave",
        plan.base.generation, len(changes.new), len(changes.changed), len(changes.moved), len(changes.vanished),
        plan.build.rows, len(changes.shards), changes.dropped_rows,
    )  # fmt: skip
    if changes.vanished and not remove_vanished:
        log.warning(
            "%d files left the corpus, and their rows stay (--remove-vanished removes them): %s",
            len(changes.vanished), "; ".join(changes.vanished[:10]),
        )  # fmt: skip
    for sentence in plan.build.notes.sentences():
        log.warning("%s", sentence)
    if not plan.is_needed(config):
        log.info("nothing has changed; generation %d stays current", plan.base.generation)
    return plan


@task("update covariances", retried=True)
def update_covariances(
    config: Config, plan: UpdatePlan, indexed: IndexedRows, lease: Lease, model_workers: ModelWorkers
) -> Metric:
    """Mix the covariances of a sample of new data into those of the former data; codes keep their whitening.

    New data are weighted by their share of the tokens. Random projections have no covariances.
    """
    store, spec, part = Store(config.index, config.storage), plan.build.spec, plan.part
    frozen = spec.projection.whitening
    new = indexed.inventory.of_spec(spec.hash).difference(plan.base_inventory)
    if frozen is None or part is None or not new.rows or not part.rows:
        return Metric(None if part is None else part.metric, None)
    started = time.perf_counter()
    most = sample_size(spec.projection, part.rows)
    examples = round(min(max(most * new.rows / part.rows, _MIN_EXAMPLES), most))
    sample = calibration_sample(plan.build.shards, examples)
    # the former covariances were measured over the whole corpus, so their weight is all tokens of the base
    base = part.metric or frozen
    mixture = Mixture(frozen, base, plan.base.tokens, store.whitenings.examples(base), new.tokens)
    newer = measure(model_workers, spec, store, lease, sample, mixture)
    if newer is None:
        return Metric(part.metric, None)
    sides = [side for group in newer.groups for side in group.sides]
    distances = [distance for group in newer.groups for distance in group.distances]
    moved = drift(distances, [spec.layers[side.layer].name for side in sides])
    run_log().info(
        "covariances of %d new examples; mean drift from the whitening %.3f, largest %.3f in layer %s",
        newer.counts.examples, moved.mean, moved.worst, moved.layer,
    )  # fmt: skip
    return Metric(newer.name, moved, time.perf_counter() - started)


@task("compact", retried=True)
def compact_update(config: Config, indexed: IndexedRows, lease: Lease) -> IndexedRows:
    """Join small fragments as soon as updates have left many of them; the same rows, in a new version."""
    store = Store(config.index, config.storage)
    inventory = store.rows.inventory(known=indexed.inventory)  # of an attempt before, perhaps
    return replace(indexed, inventory=compact_rows(store, lease, inventory, _SURPLUS_FRAGMENTS))


@task("expire generations", retried=True)
def expire_generations(config: Config, lease: Lease) -> None:
    """Delete all but the newest `update.keep` generations, and what only they need, like `lorif gc --apply`."""
    if config.update.keep is None:
        return
    store = Store(config.index, config.storage)
    garbage = find_garbage(store, config.update.keep, lease_held=True)
    lease.confirm()
    remove_garbage(store, garbage)
    run_log().info("%d generations expired, %d bytes were freed", len(garbage.generations), garbage.bytes)


@task("publish update", retried=True)
def publish_update(
    config: Config,
    plan: UpdatePlan,
    drifts: Sequence[PartDrift],
    indexed: IndexedRows,
    metric: Metric,
    fit: Fit,
    lease: Lease,
) -> Generation:
    """Publish the rows that stayed and the new rows as one generation."""
    indexed = replace(indexed, quarantined=(*plan.quarantined, *indexed.quarantined))
    newest = new_part(config, plan.build, fit, metric.name)
    leading = {newest.spec, *plan.followers}  # what followed a follower follows the newest, too
    others = [
        part.following(newest) if part.spec in plan.followers or part.follows in leading else part
        for part in plan.base.parts
        if part.spec != newest.spec
    ]
    changes, base_keys = plan.changes, plan.base_inventory.keys
    stayed = sum(entry.rows for entry in indexed.inventory.entries if entry.key in base_keys)
    return publish(
        config,
        plan.build,
        [*others, newest],
        indexed,
        fit,
        lease,
        timings={
            "start": indexed.start_seconds, "calibrate": plan.build.calibration_seconds + metric.seconds,
            "drift": sum(drift.seconds for drift in drifts), "index": indexed.seconds, "curvature": fit.seconds,
        },
        changes={
            "command": "update",
            "files": {
                "new": len(changes.new), "changed": len(changes.changed), "moved": len(changes.moved),
                "vanished": len(changes.vanished),
            },
            "corpus": plan.build.notes.as_dict(),
            "rows_added": indexed.inventory.rows - stayed - changes.refreshed_rows,
            "rows_removed": plan.base_inventory.rows - stayed - changes.refreshed_rows,
            "rows_refreshed": changes.refreshed_rows,
            "curvature": fit.how,
            "older_rows": [asdict(drift) for drift in drifts],
            "drift": None if metric.drift is None else asdict(metric.drift),
        },
    )  # fmt: skip
