"""The last step of a flow that changes an index: publish the current contents of its tables as a generation."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorif_core.config import Config
from lorif_core.lifecycle.curvature_fit import Fit
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.publishing import publish_rows
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from tasks.orchestration import run_log
from tasks.outcome import show_generation, was_published


def publish(
    config: Config,
    plan: BuildPlan,
    parts: Sequence[Part],
    indexed: IndexedRows,
    fit: Fit,
    lease: Lease,
    timings: Mapping[str, float],
    changes: Mapping[str, Any],
) -> Generation:
    """Publish the indexed rows, unless nothing has changed, and create the artifacts of the generation."""
    generation = publish_rows(config, plan, parts, indexed, fit, lease, timings, changes)
    if not was_published(generation):
        run_log().info("nothing has changed; generation %d stays current", generation.generation)
        return generation
    show_generation(config.index, plan, indexed, generation)
    return generation
