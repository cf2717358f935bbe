"""The steps of an update that a build has not: compare, let the covariances grow, publish what has changed."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lorif_core.config import Config
from lorif_core.curvature.metric import Drift, drift, grown
from lorif_core.lifecycle.calibrate import calibration_sample
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.lifecycle.update import UpdatePlan, make_update_plan
from lorif_core.report.changes import PartDrift
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.calibrate import measure
from tasks.curvature import Fit
from tasks.indexing import IndexedRows
from tasks.publish import new_part, publish
from tasks.retry import RETRIED

_FEWEST_EXAMPLES = 32  # of new data that covariances are measured on


@dataclass(frozen=True, slots=True)
class Metric:
    """The covariances that queries are folded with, how far they have drifted, and the seconds it took."""

    name: str | None
    drift: Drift | None
    seconds: float = 0.0


@task(name="plan update", cache_policy=NO_CACHE)
def plan_update(config: Config, remove_vanished: bool, within: str) -> UpdatePlan:
    """Compare corpus and index, and say what will be done."""
    log = get_run_logger()
    plan = make_update_plan(config, remove_vanished, within)
    changes = plan.changes
    log.info(
        "generation %d against the corpus: %d files new, %d changed, %d moved, %d vanished; %d records in %d "
        "shards to index, %d rows leave",
        plan.base.generation, len(changes.new), len(changes.changed), len(changes.moved), len(changes.vanished),
        plan.build.rows, len(changes.shards), changes.dropped_rows,
    )  # fmt: skip
    if changes.vanished and not remove_vanished:
        log.warning(
            "%d files left the corpus, their rows stay (--remove-vanished drops them): %s",
            len(changes.vanished), "; ".join(changes.vanished[:10]),
        )  # fmt: skip
    if not plan.is_needed(config):
        log.info("nothing has changed since generation %d, which stands", plan.base.generation)
    return plan


@task(name="let covariances grow", **RETRIED)
def accumulate(config: Config, plan: UpdatePlan, indexed: IndexedRows, lease: Lease) -> Metric:
    """Add the covariances of new data, by a sample of it, to those of the data before; codes keep their whitening.

    New data count by their share of the tokens. Random projections have no covariances.
    """
    store, spec, part = Store(config.index, config.storage), plan.build.spec, plan.part
    frozen = store.covariances.read(spec.projection.whitening)
    new = indexed.inventory.of_spec(spec.hash).beyond(plan.held)
    if frozen is None or part is None or not new.rows:
        return Metric(None if part is None else part.metric, None)
    started = time.perf_counter()
    share = config.projection.calibration_examples * new.rows / part.rows
    examples = round(min(max(share, _FEWEST_EXAMPLES), config.projection.calibration_examples))
    sample = measure(config, spec, calibration_sample(plan.build.shards, examples))
    if not sample.tokens:
        return Metric(part.metric, None)
    # at a checkpoint, covariances are measured over the whole corpus, whatever rows are there
    newer = grown(store.covariances.read(part.metric) or frozen, plan.base.tokens, sample, new.tokens)
    found = drift(frozen, newer, [layer.name for layer in spec.layers])
    get_run_logger().info(
        "covariances of %d new examples; drift from the whitening %.3f, at most %.3f in layer %s",
        sample.examples, found.mean, found.worst, found.layer,
    )  # fmt: skip
    lease.confirm()
    store.covariances.write(newer, spec.layers)
    return Metric(newer.digest(), found, time.perf_counter() - started)


@task(name="expire generations", **RETRIED)
def expire(config: Config, lease: Lease) -> None:
    """Collect all generations but the newest `update.keep`, with what only they need, as `lorif gc --apply`."""
    if config.update.keep is None:
        return
    store = Store(config.index, config.storage)
    garbage = find_garbage(store, config.update.keep, held=True)
    lease.confirm()
    remove_garbage(store, garbage)
    get_run_logger().info("%d generations expired, %d bytes are free", len(garbage.generations), garbage.bytes)


@task(name="publish update", **RETRIED)
def publish_update(
    config: Config,
    plan: UpdatePlan,
    drifts: Sequence[PartDrift],
    indexed: IndexedRows,
    metric: Metric,
    fit: Fit,
    lease: Lease,
) -> Generation:
    """Publish the rows that stayed and those that came as one generation."""
    indexed = replace(indexed, quarantined=(*plan.quarantined, *indexed.quarantined))
    newest = new_part(config, plan.build, fit, metric.name)
    others = [
        part.following(newest) if part.spec in plan.followers or part.follows == newest.spec else part
        for part in plan.base.parts
        if part.spec != newest.spec
    ]
    changes, held = plan.changes, plan.held.keys
    stayed = sum(holding.rows for holding in indexed.inventory.holdings if holding.key in held)
    return publish(
        config,
        plan.build,
        [*others, newest],
        indexed,
        fit,
        lease,
        timings={
            "calibrate": plan.build.calibration_seconds + metric.seconds,
            "drift": sum(drift.seconds for drift in drifts), "index": indexed.seconds, "curvature": fit.seconds,
        },
        changes={
            "command": "update",
            "files": {
                "new": len(changes.new), "changed": len(changes.changed), "moved": len(changes.moved),
                "vanished": len(changes.vanished),
            },
            "rows_added": indexed.inventory.rows - stayed - changes.refreshed_rows,
            "rows_removed": plan.held.rows - stayed - changes.refreshed_rows,
            "rows_refreshed": changes.refreshed_rows,
            "curvature": fit.how,
            "older_rows": [asdict(drift) for drift in drifts],
            "drift": None if metric.drift is None else asdict(metric.drift),
        },
    )  # fmt: skip
