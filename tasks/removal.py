"""Takedown, carried out: rows leave the newest generation, and its curvatures go without them."""

import json
import logging
from dataclasses import replace

import pyarrow as pa

from lorif_core.config import ComputeConfig, UpdateConfig
from lorif_core.errors import UserError
from lorif_core.lifecycle.publishing import publish_next
from lorif_core.lifecycle.removal import REMOVED, honour, removals_of, same_content
from lorif_core.lifecycle.update import why_refit
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.curvature import Fit, fit_rows
from tasks.merge import Merger

log = logging.getLogger(__name__)


def remove_rows(
    store: Store, rows: pa.Table, compute: ComputeConfig, wishes: UpdateConfig, lease: Lease
) -> Generation:
    """Publish the newest generation without some of its rows, and remember that they are not to come back.

    Run again after a death it ends the same; if an update runs before, that takes the rows out.

    Args:
        store: the index.
        rows: `example_id` and `content_hash` of the rows, of the newest generation; some rows must stay.
        compute: where curvatures are fitted.
        wishes: whether they are, or rows are taken out of them.
        lease: held by this process.

    Raises:
        UserError: no row would stay.
    """
    base = store.latest()
    if base.index_spec.tokenisation.id is None:
        rows = same_content(store, base.factors_version, rows)
    if rows.num_rows >= base.rows:
        raise UserError(f"this would remove every row of {store.uri}; to give the index up, delete its folder")
    lease.confirm()
    held = store.rows.rewind(base.factors_version)
    store.rows.note_removed(rows)
    removals = removals_of(store, base.index_spec)
    inventory, _ = honour(store, removals)
    fits = [_fit(store, base, part, held, inventory, compute, wishes, lease) for part in base.parts]
    parts = [
        replace(part, curvature=fit.curvature, left=fit.left) for part, fit in zip(base.parts, fits, strict=True)
    ]
    leaders = {part.spec: part for part in parts}
    parts = [part if part.follows is None else part.following(leaders[part.follows]) for part in parts]
    skipped = {(example_id, reason) for example_id, reason in json.loads(base.skipped_json)}
    skipped |= {(example_id, REMOVED) for example_id in rows.column("example_id").to_pylist()}
    return publish_next(
        store, lease, parts, inventory, curvature_version=store.curvatures.version(),
        coverage_json=base.coverage_json, skipped=sorted(skipped), quarantined_json=base.quarantined_json,
        timings={"curvature": sum(fit.seconds for fit in fits)},
        changes={
            "command": "remove", "rows_removed": base.rows - inventory.rows,
            "curvature": [fit.how for fit in fits],
        },
        removals=removals.count,
    )  # fmt: skip


def _fit(
    store: Store,
    base: Generation,
    part: Part,
    held: Inventory,
    inventory: Inventory,
    compute: ComputeConfig,
    wishes: UpdateConfig,
    lease: Lease,
) -> Fit:
    """The curvature of a part without the rows that left it, with the settings it has."""
    before, rows = held.of_spec(part.spec), inventory.of_spec(part.spec)
    left, entered = before.beyond(rows), rows.beyond(before)
    if not rows.rows or not left.rows or part.curvature_kind == "none" or part.follows is not None:
        return Fit(part.curvature, store.curvatures.version(), "kept", part.left, 0.0)
    reason = why_refit(wishes, part, part.curvature_spec, left.rows, before.rows)
    if reason is not None and part.sampled:
        log.warning(
            "the curvature of checkpoint %s stands for %d rows of older checkpoints by a sample, so rows are "
            "taken out of it; lorif update with update.curvature=refit fits it anew",
            part.checkpoint, part.sampled,
        )  # fmt: skip
        reason = None
    if reason is None:
        log.info("the rows are taken out of the curvature of checkpoint %s", part.checkpoint)
        return Merger(store, compute, base, part, lease).run(entered, left)
    log.info("the curvature of checkpoint %s is fitted over all rows that stay: %s", part.checkpoint, reason)
    return fit_rows(store, compute, part.index_spec, part.curvature_spec, rows, lease)
