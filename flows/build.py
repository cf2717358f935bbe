"""Flow `build`: corpus -> committed rows -> curvature -> a published generation."""

from prefect import flow

from lorif_core.config import Config
from lorif_core.store import Generation
from tasks.build import fit_curvature, index_shards, plan_build, publish_generation


@flow(name="build", flow_run_name="build {config.index}", persist_result=False)
def build(config: Config) -> Generation:
    """Build an index and publish a generation. Run again after a failure, it resumes."""
    plan = plan_build(config)
    indexed = index_shards(config, plan)
    curvature = fit_curvature(config, plan, indexed)
    return publish_generation(config, plan, indexed, curvature)
