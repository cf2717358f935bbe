"""The end of whatever changes an index: a generation that says what the tables hold now, and how it came about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from lorif_core.config import Config
from lorif_core.generation import Generation, Part, generation_of
from lorif_core.inventory import Inventory, parts_holding
from lorif_core.lease import Lease
from lorif_core.plan import BuildPlan
from lorif_core.spec import Coverage
from lorif_core.store import Store, now
from tasks.curvature import Fit


def new_part(config: Config, plan: BuildPlan, fit: Fit, metric: str | None = None) -> Part:
    """The part of the rows that a plan is about; its counts come from the inventory it is published with."""
    return Part(
        spec_json=plan.spec.to_json(),
        checkpoint=plan.spec.checkpoint,
        model_path=_lasting(config.model.path),
        model_revision=config.model.revision,
        curvature=fit.curvature,
        curvature_kind=plan.curvature.kind,
        curvature_json=json.dumps(asdict(plan.curvature)),
        factored_query=config.query.factored,
        rows=0,
        tokens=0,
        metric=metric,
        left=fit.left,
    )


def publish(
    store: Store,
    parts: Sequence[Part],
    lease: Lease,
    *,
    inventory: Inventory,
    curvature_version: int,
    coverage: Coverage,
    skipped: Sequence[tuple[str, str]],
    quarantined: Sequence[tuple[str, str]],
    timings: Mapping[str, float],
    changes: Mapping[str, Any],
) -> Generation:
    """Publish what the newest version of the factors holds, and show it as an artifact.

    Where readers would see what they see already, nothing is published and the newest generation stands.
    """
    previous = store.generations()
    generation = generation_of(
        parts_holding(parts, inventory),
        generation=previous[-1].generation + 1 if previous else 1,
        created_at=now(),
        factors_version=inventory.version,
        curvature_version=curvature_version,
        coverage_json=json.dumps(asdict(coverage)),
        skipped_json=json.dumps(skipped),
        quarantined_json=json.dumps(quarantined),
        timings_json=json.dumps(timings),
        changes_json=json.dumps(changes),
    )
    if previous and generation.shows_what(previous[-1]):
        get_run_logger().info("nothing has changed since generation %d, which stands", previous[-1].generation)
        return previous[-1]
    lease.confirm()
    store.publish(generation)
    create_table_artifact(
        key="generation",
        table=[
            {"generation": generation.generation, "rows": generation.rows, "tokens": generation.tokens,
             "skipped": len(skipped), "quarantined": len(quarantined),
             **{f"{stage} seconds": round(seconds, 1) for stage, seconds in timings.items()}}
        ],
        description=f"Published generation {generation.generation} of {store.uri}",
    )  # fmt: skip
    return generation


def _lasting(path: str) -> str:
    """A local checkpoint's absolute path, so that a query from another folder finds it; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
