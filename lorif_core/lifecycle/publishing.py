"""Publishing: the last step of every change of an index is a generation that names the versions of its tables."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorif_core.errors import UserError
from lorif_core.lifecycle.removal import apply_removals, clean_fragments, read_removals
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part, generation_of, now
from lorif_core.tables.inventory import Inventory, recount_parts
from lorif_core.tables.store import Store

if TYPE_CHECKING:  # a rollback needs neither the plan nor transformers, whose import takes a second
    from lorif_core.config import Config
    from lorif_core.lifecycle.curvature_fit import Fit
    from lorif_core.lifecycle.indexing import IndexedRows
    from lorif_core.lifecycle.plan import BuildPlan

log = logging.getLogger(__name__)


def publish_next(
    store: Store,
    lease: Lease,
    parts: Sequence[Part],
    inventory: Inventory,
    *,
    curvature_version: int,
    coverage_json: str,
    skipped: Sequence[tuple[str, str]],
    quarantined_json: str,
    timings: Mapping[str, float],
    changes: Mapping[str, Any],
    removals: int,
) -> Generation:
    """Publish the newest version of `factors`, given its inventory, as the next generation.

    If readers would see no difference to the newest generation, nothing is published and that one is returned,
    unless a drift was measured.
    """
    previous = store.generations()
    generation = generation_of(
        recount_parts(parts, inventory),
        generation=previous[-1].generation + 1 if previous else 1,
        created_at=now(),
        factors_version=inventory.version,
        curvature_version=curvature_version,
        coverage_json=coverage_json,
        skipped_json=json.dumps([list(item) for item in skipped]),
        quarantined_json=quarantined_json,
        timings_json=json.dumps(timings),
        changes_json=json.dumps(changes),
        removals=removals,
    )
    # a measured drift of recorded rows is worth a generation, so that the next update does not measure it again
    if previous and generation.shows_same_as(previous[-1], with_changes=bool(changes.get("older_rows"))):
        return previous[-1]
    lease.confirm()
    return store.publish(generation)


def new_part(config: "Config", plan: "BuildPlan", fit: "Fit", metric: str | None = None) -> Part:
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


def part_of_build(config: "Config", plan: "BuildPlan", fit: "Fit") -> Part:
    """The only part after a build; it keeps the metric that updates have measured for rows of its spec."""
    generations = Store(config.index, config.storage).generations()
    parts = generations[-1].parts if generations else ()
    metric = next((part.metric for part in parts if part.spec == plan.spec.hash), None)
    return new_part(config, plan, fit, metric)


def publish_rows(
    config: "Config",
    plan: "BuildPlan",
    parts: Sequence[Part],
    indexed: "IndexedRows",
    fit: "Fit",
    lease: Lease,
    timings: Mapping[str, float],
    changes: Mapping[str, Any],
) -> Generation:
    """Publish the rows that a build or an update has indexed; see `publish_next`."""
    return publish_next(
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


def rollback(store: Store, lease: Lease, number: int) -> Generation:
    """Publish an earlier generation again under the next number, without the rows removed in the meantime.

    The newest version of the tables is reset to it, too, so that the next change starts from the published rows.

    Raises:
        UserError: the generation has never existed, it was collected, or all its rows were removed on request.
    """
    target, newest = find_generation(store, number), store.latest()
    if target.generation == newest.generation:
        log.info("generation %d is the newest already; nothing to do", number)
        return newest
    lease.confirm()
    store.rows.rewind(target.factors_version)
    removals = read_removals(store, target.index_spec)
    inventory, removed_again = apply_removals(store, removals, clean_fragments(store, target, removals))
    if not inventory.rows:
        store.rows.rewind(newest.factors_version)
        raise UserError(
            f"all rows of generation {number} of {store.uri} were removed on request, so there is nothing to roll "
            f"back to; choose a generation with other rows"
        )
    changes = target.change("rollback", to=number, removed_again=removed_again)
    return publish_again(store, lease, replace(target, removals=removals.count), inventory, changes)


def publish_again(
    store: Store, lease: Lease, target: Generation, inventory: Inventory, changes: Mapping[str, Any]
) -> Generation:
    """Publish the newest version of `factors`, given its inventory, with all else as in an earlier generation."""
    return publish_next(
        store, lease, target.parts, inventory, curvature_version=target.curvature_version,
        coverage_json=target.coverage_json, skipped=json.loads(target.skipped_json),
        quarantined_json=target.quarantined_json, timings={}, changes=changes, removals=target.removals,
    )  # fmt: skip


def find_generation(store: Store, number: int) -> Generation:
    """A generation by its number. Raises UserError if it has never existed, or was collected."""
    generations = store.generations()
    newest = store.latest().generation
    for generation in generations:
        if generation.generation == number:
            return generation
    if 0 < number < newest:
        available = ", ".join(str(generation.generation) for generation in generations)
        raise UserError(f"generation {number} of {store.uri} was collected; available generations: {available}")
    raise UserError(f"the index {store.uri} has never had a generation {number}; its newest is {newest}")


def _absolute(path: str) -> str:
    """The absolute path of a local checkpoint, so that queries from other folders find it; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
