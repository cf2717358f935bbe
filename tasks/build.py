"""The first and the last step of a build: plan it, and publish the generation."""

from lorif_core.config import Config
from lorif_core.lifecycle.curvature_fit import Fit
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import BuildPlan, make_plan
from lorif_core.lifecycle.publishing import part_of_build
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation
from tasks.listing import list_on_workers
from tasks.orchestration import run_log, task
from tasks.publish import publish


@task("plan")
def plan_build(config: Config) -> BuildPlan:
    """Check everything before anything is written, and log the plan."""
    log = run_log()
    plan = make_plan(config, list_on_workers(config))
    log.info("%d records in %d shards, %d layers", plan.rows, len(plan.shards), len(plan.spec.layers))
    for sentence in plan.notes.sentences():
        log.warning("%s", sentence)
    if plan.length is not None:
        log.info("%s", plan.length.sentence())
    log.info("tracked: %s", plan.choice)
    log.info("%s", plan.coverage.sentence())
    log.info(
        "%.0f bytes per example; dense (LoGRA) would take %.0f",
        plan.layout.bytes_per_example,
        plan.layout.dense_bytes_per_example(),
    )
    return plan


@task("publish generation", retried=True)
def publish_generation(
    config: Config, plan: BuildPlan, indexed: IndexedRows, fit: Fit, lease: Lease
) -> Generation:
    """Publish the generation, so that readers see it, and create its artifacts.

    A build that changes nothing, such as one that is run again after it died at its very end, publishes nothing.
    """
    return publish(
        config,
        plan,
        [part_of_build(config, plan, fit)],
        indexed,
        fit,
        lease,
        timings={
            "start": indexed.start_seconds, "calibrate": plan.calibration_seconds, "index": indexed.seconds,
            "curvature": fit.seconds,
        },
        changes={"command": "build", "corpus": plan.notes.as_dict()},
    )  # fmt: skip
