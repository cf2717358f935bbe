"""The last step of a flow that changes an index: publish the current contents of its tables as a generation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorif_core.config import Config
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.publishing import publish_next
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.store import Store
from tasks.curvature import Fit
from tasks.indexing import IndexedRows
from tasks.orchestration import run_log
from tasks.outcome import show_generation


def new_part(config: Config, plan: BuildPlan, fit: Fit, metric: str | None = None) -> Part:
    """The part for the rows of a plan; publishing fills in its counts from the inventory."""
    return Part(
        spec_json=plan.spec.to_json(),
        checkpoint=plan.spec.checkpoint,
        model_path=_absolute(config.model.path),
        model_revision=config.model.revision,
        curvature=fit.curvature,
        curvature_kind=plan.curvature.kind,
        curvature_json=json.dumps(asdict(plan.curvature)),
        factored_query=config.query.factored,
        rows=0,
        tokens=0,
        metric=metric,
        left=fit.left,
        sampled=fit.sampled,
    )


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
    generation = publish_next(
        Store(config.index, config.storage),
        lease,
        parts,
        indexed.inventory,
        curvature_version=fit.version,
        coverage_json=json.dumps(asdict(plan.coverage)),
        skipped=indexed.skipped,
        quarantined_json=json.dumps(indexed.quarantined),
        timings=timings,
        changes=changes,
        removals=indexed.removals,
    )
    if generation.changes != changes:
        run_log().info("nothing has changed; generation %d stays current", generation.generation)
        return generation
    show_generation(config.index, plan, indexed, generation)
    return generation


def _absolute(path: str) -> str:
    """The absolute path of a local checkpoint, so that queries from other folders find it; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
