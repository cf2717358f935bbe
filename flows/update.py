"""Flow `update`: what is new in the corpus -> rows, covariances, curvature -> a generation beside the old ones."""

from prefect import flow

from flows.parameters import ConfigParameter
from lorif_core.lifecycle.prefix import names_under
from lorif_core.report.changes import PartDrift
from lorif_core.storage.lease import hold
from lorif_core.tables.generation import Generation
from tasks.cluster import cluster
from tasks.indexing import index_shards
from tasks.merge import update_curvature
from tasks.older import judge_older, settle_whitening
from tasks.outcome import leave_receipt
from tasks.update import accumulate, expire, plan_update, publish_update


@flow(name="update", flow_run_name="update {config.index}", persist_result=False)
def update(
    config: ConfigParameter,
    remove_vanished: bool = False,
    publish_incomplete: bool = False,
    prefix: str | None = None,
) -> Generation:
    """Bring an index up to its corpus; the generation that stands then. Run again after a failure, it resumes.

    Args:
        config: of the build; its spec must be that of the index, but that its model may have been trained further
            (`update.policy`).
        remove_vanished: drop rows of files that are no longer in the corpus; otherwise they stay.
        publish_incomplete: publish without the shards that failed every attempt, and record them.
        prefix: look only at the files of the corpus whose URIs begin so; None looks at all of them.
    """
    within = names_under(config.corpus.uri, prefix)
    with hold(config.index, config.storage, "update") as lease:
        plan = plan_update(config, remove_vanished, within)
        if not plan.is_needed(config):
            leave_receipt(config, plan.base)
            return plan.base
        drifts: tuple[PartDrift, ...] = ()
        with cluster(config.compute):  # one Ray for all steps
            if plan.part is None:  # a checkpoint that the index has not seen
                plan = settle_whitening(config, plan, lease)
                if config.update.policy == "auto":
                    plan, drifts = judge_older(config, plan)
            indexed = index_shards(config, plan.build, lease, publish_incomplete)
            metric = accumulate(config, plan, indexed, lease)
            fit = update_curvature(config, plan, indexed, lease)
        generation = publish_update(config, plan, drifts, indexed, metric, fit, lease)
        expire(config, lease)
        leave_receipt(config, generation)
        return generation
