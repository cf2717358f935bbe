"""Takedown: publish a generation without some rows, and take these rows out of its curvatures."""

import json
import logging
from dataclasses import replace

import pyarrow as pa

from lorif_core.config import ComputeConfig, UpdateConfig
from lorif_core.errors import UserError
from lorif_core.lifecycle.curvature_fit import Fit
from lorif_core.lifecycle.publishing import publish_next
from lorif_core.lifecycle.removal import REMOVED, apply_removals, read_removals, same_content
from lorif_core.lifecycle.update import refit_reason
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.curvature import fit_rows
from tasks.merge import Merger

log = logging.getLogger(__name__)


def remove_rows(
    store: Store, rows: pa.Table, compute: ComputeConfig, settings: UpdateConfig, lease: Lease
) -> Generation:
    """Publish the newest generation without some of its rows, and record that they must not come back.

    If it is run again after it was killed, the result is the same; an update in between removes the rows itself.

    Args:
        store: the index.
        rows: `example_id` and `content_hash` of rows of the newest generation; some rows must stay.
        compute: where curvatures are fitted.
        settings: whether curvatures are fitted again or rows are subtracted from them.
        lease: lease of the index, held by this process.

    Raises:
        UserError: no row would stay.
    """
    base = store.latest()
    if base.index_spec.tokenisation.id is None:
        rows = same_content(store, base.factors_version, rows)
    if rows.num_rows >= base.rows:
        raise UserError(f"this would remove every row of {store.uri}; to discard the index, delete its folder")
    lease.confirm()
    base_inventory = store.rows.rewind(base.factors_version)
    store.rows.note_removed(rows)
    removals = read_removals(store, base.index_spec)
    inventory, _ = apply_removals(store, removals)
    fits = [_fit(store, base, part, base_inventory, inventory, compute, settings, lease) for part in base.parts]
    parts = [
        replace(part, curvature=fit.curvature, left=fit.left) for part, fit in zip(base.parts, fits, strict=True)
    ]
    by_spec = {part.spec: part for part in parts}
    parts = [part if part.follows is None else part.following(by_spec[part.follows]) for part in parts]
    skipped = {(example_id, reason) for example_id, reason in json.loads(base.skipped_json)}
    skipped |= {(example_id, REMOVED) for example_id in rows.column("example_id").to_pylist()}
    return publish_next(
        store, lease, parts, inventory, curvature_version=store.curvatures.version(),
        coverage_json=base.coverage_json, skipped=sorted(skipped), quarantined_json=base.quarantined_json,
        timings={"curvature": sum(fit.seconds for fit in fits)},
        changes=base.change(
            "remove", rows_removed=base.rows - inventory.rows, curvature=[fit.how for fit in fits],
        ),
        removals=removals.count,
    )  # fmt: skip


def _fit(
    store: Store,
    base: Generation,
    part: Part,
    base_inventory: Inventory,
    inventory: Inventory,
    compute: ComputeConfig,
    settings: UpdateConfig,
    lease: Lease,
) -> Fit:
    """The curvature of a part without the rows that left it, with unchanged settings."""
    before, rows = base_inventory.of_spec(part.spec), inventory.of_spec(part.spec)
    left, entered = before.difference(rows), rows.difference(before)
    if not rows.rows or not left.rows or part.curvature_kind == "none" or part.follows is not None:
        return Fit(part.curvature, store.curvatures.version(), "kept", part.left, 0.0)
    reason = refit_reason(settings, part, part.curvature_spec, left.rows, before.rows)
    if reason is not None and part.sampled:
        log.warning(
            "the curvature of checkpoint %s represents %d rows of older checkpoints by a sample, so the rows are "
            "subtracted from it; lorif update with update.curvature=refit fits it again",
            part.checkpoint, part.sampled,
        )  # fmt: skip
        reason = None
    if reason is None:
        log.info("the rows are subtracted from the curvature of checkpoint %s", part.checkpoint)
        return Merger(store, compute, base, part, lease).run(entered, left)
    log.info("the curvature of checkpoint %s is fitted again over all remaining rows: %s", part.checkpoint, reason)
    return fit_rows(store, compute, part.index_spec, part.curvature_spec, rows, lease)
