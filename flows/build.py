"""Flow `build`: corpus -> committed rows -> curvature -> a published generation."""

from flows.parameters import ConfigParameter
from lorif_core.lifecycle.example_length import settled
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.generation import Generation
from tasks.build import plan_build, publish_generation
from tasks.calibrate import calibrate
from tasks.cluster import cluster
from tasks.curvature import fit_curvature
from tasks.indexing import index_shards
from tasks.model_workers import ModelWorkers
from tasks.orchestration import flow
from tasks.outcome import write_receipt


@flow("build", "build {config.index}")
def build(config: ConfigParameter, publish_incomplete: bool = False) -> Generation:
    """Build an index and publish a generation. If it is run again after a failure, it resumes.

    With `publish_incomplete` it publishes without the shards that failed every attempt, and records them.
    """
    plan = plan_build(config)
    config = settled(config, plan.spec)
    with hold_lease(config.index, config.storage, "build") as lease:
        with cluster(config.compute):  # one Ray for all steps
            with ModelWorkers(config) as workers:
                plan = calibrate(config, plan, lease, workers)
                indexed = index_shards(config, plan, lease, publish_incomplete, workers)
            fit = fit_curvature(config, plan, indexed, lease)
        generation = publish_generation(config, plan, indexed, fit, lease)
        write_receipt(config, generation)
        return generation
