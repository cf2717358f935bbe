"""Flow `update`: changes of the corpus -> rows, covariances, curvature -> a published generation."""

from flows.parameters import ConfigParameter
from lorif_core.lifecycle.example_length import settled
from lorif_core.lifecycle.prefix import relative_prefix
from lorif_core.report.changes import PartDrift
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.generation import Generation
from tasks.cluster import cluster
from tasks.indexing import index_shards
from tasks.merge import update_curvature
from tasks.model_workers import ModelWorkers
from tasks.older import calibrate_whitening, decide_older_rows
from tasks.orchestration import flow
from tasks.outcome import write_receipt
from tasks.update import compact_update, expire_generations, plan_update, publish_update, update_covariances


@flow("update", "update {config.index}")
def update(
    config: ConfigParameter,
    remove_vanished: bool = False,
    publish_incomplete: bool = False,
    prefix: str | None = None,
) -> Generation:
    """Update an index to its corpus; returns the current generation. If run again after a failure, it resumes.

    Args:
        config: config of the build; its spec must equal that of the index, except that the model may have been
            trained further (`update.policy`).
        remove_vanished: drop rows of files that are no longer in the corpus; otherwise they stay.
        publish_incomplete: publish without the shards that failed every attempt, and record them.
        prefix: consider only corpus files whose URIs begin with it; None considers all files.
    """
    within = relative_prefix(config.corpus.uri, prefix)
    with hold_lease(config.index, config.storage, "update") as lease:
        plan = plan_update(config, remove_vanished, within)
        config = settled(config, plan.build.spec)
        if not plan.is_needed(config):
            write_receipt(config, plan.base)
            return plan.base
        drifts: tuple[PartDrift, ...] = ()
        with cluster(config.compute):  # one Ray for all steps
            with ModelWorkers(config) as workers:
                if plan.has_new_checkpoint:  # the index has not seen it
                    plan = calibrate_whitening(config, plan, lease, workers)
                    if config.update.policy == "auto":
                        workers.release()  # the workers that measure the drift need what these reserve
                        plan, drifts = decide_older_rows(config, plan)
                indexed = index_shards(config, plan.build, lease, publish_incomplete, workers)
                metric = update_covariances(config, plan, indexed, lease, workers)
            fit = update_curvature(config, plan, indexed, lease)
        indexed = compact_update(config, indexed, lease)
        generation = publish_update(config, plan, drifts, indexed, metric, fit, lease)
        expire_generations(config, lease)
        write_receipt(config, generation)
        return generation
