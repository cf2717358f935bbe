"""The end of whatever changes an index: the generation that says what its tables hold now."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lorif_core.errors import UserError
from lorif_core.lifecycle.removal import honour, removals_of, trusted_by
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part, generation_of, now
from lorif_core.tables.inventory import Inventory, parts_holding
from lorif_core.tables.store import Store

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
    """Publish what an inventory of the newest version of the factors says.

    Where readers would see what they see already, nothing is published and the newest generation stands.
    """
    previous = store.generations()
    generation = generation_of(
        parts_holding(parts, inventory),
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
    if previous and generation.shows_what(previous[-1]):
        return previous[-1]
    lease.confirm()
    return store.publish(generation)


def rollback(store: Store, lease: Lease, number: int) -> Generation:
    """Publish an earlier generation again under the next number: its rows, but those removed since, and its fits.

    The newest version of the tables begins anew from it, so that what comes next goes on from what is published.

    Raises:
        UserError: there is no such generation, or not any more.
    """
    wanted, newest = find_generation(store, number), store.latest()
    if wanted.generation == newest.generation:
        log.info("generation %d is the newest; it stands", number)
        return newest
    lease.confirm()
    store.rows.rewind(wanted.factors_version)
    removals = removals_of(store, wanted.index_spec)
    inventory, again = honour(store, removals, trusted_by(store, wanted, removals))
    return publish_next(
        store, lease, wanted.parts, inventory, curvature_version=wanted.curvature_version,
        coverage_json=wanted.coverage_json, skipped=json.loads(wanted.skipped_json),
        quarantined_json=wanted.quarantined_json, timings={},
        changes={"command": "rollback", "to": number, "removed_again": again}, removals=removals.count,
    )  # fmt: skip


def find_generation(store: Store, number: int) -> Generation:
    """A generation by its number. Raises UserError if there is none, or none any more."""
    generations = store.generations()
    newest = store.latest().generation
    for generation in generations:
        if generation.generation == number:
            return generation
    if 0 < number < newest:
        left = ", ".join(str(generation.generation) for generation in generations)
        raise UserError(f"generation {number} of {store.uri} was collected; there are {left}")
    raise UserError(f"the index {store.uri} has never had a generation {number}; its newest is {newest}")
