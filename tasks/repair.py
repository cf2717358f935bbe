"""Repair: publish a generation without damaged shards and with curvatures that are fitted again."""

import json
import logging
from collections.abc import Set
from dataclasses import replace

from lorif_core.config import ComputeConfig
from lorif_core.errors import LorifError, UserError
from lorif_core.lifecycle.publishing import publish_next
from lorif_core.spec import parse_shard_key
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.curvature import fit_rows

log = logging.getLogger(__name__)

_LOST = "its stored rows were damaged, and lorif verify --repair removed them"
_MAYBE_LOST = "it may have lost damaged rows, which lorif verify --repair removed"


def repair(
    store: Store, damaged_files: Set[str], compute: ComputeConfig, lease: Lease, *, refit: bool
) -> Generation:
    """Publish the newest generation without the fragments of damaged files; no other row is read or written.

    The lost shards are recorded as quarantined, so the next update reads their files again.

    Args:
        store: the index.
        damaged_files: data files of `factors`.
        compute: where curvatures are fitted.
        lease: lease of the index, held by this process.
        refit: fit all curvatures again, not only those of parts that lose rows.

    Raises:
        UserError: no row would stay.
    """
    base = store.latest()
    lease.confirm()
    inventory = store.rows.without_files(base.factors_version, damaged_files)
    if not inventory.rows:
        raise UserError(f"all rows of {store.uri} are damaged; build the index again in another place")
    quarantined = [*json.loads(base.quarantined_json), *_lost_places(store, base, inventory)]
    store.tag_versions()
    parts = [_repaired(store, part, inventory, compute, lease, refit) for part in base.parts]
    by_spec = {part.spec: part for part in parts}
    parts = [part if part.follows is None else part.following(by_spec[part.follows]) for part in parts]
    return publish_next(
        store, lease, parts, inventory, curvature_version=store.curvatures.version(),
        coverage_json=base.coverage_json, skipped=json.loads(base.skipped_json),
        quarantined_json=json.dumps(quarantined), timings={},
        changes=base.change("verify", rows_removed=base.rows - inventory.rows), removals=base.removals,
    )  # fmt: skip


def _lost_places(store: Store, base: Generation, inventory: Inventory) -> list[tuple[str, str]]:
    """(place, cause) of the shards of a generation that an inventory lacks.

    If they are unknown, these are all files of the inventory.
    """
    try:
        lost = store.rows.inventory(base.factors_version, known=inventory).keys - inventory.keys
    except LorifError:  # the shards of a file without a record are read from its rows, which are damaged
        files = {parse_shard_key(shard)[0].name for _, shard in inventory.keys}
        return [(name, _MAYBE_LOST) for name in sorted(files)]
    return [(shard, _LOST) for shard in sorted({shard for _, shard in lost})]


def _repaired(
    store: Store, part: Part, inventory: Inventory, compute: ComputeConfig, lease: Lease, refit: bool
) -> Part:
    """The part with a curvature of the rows that it retains."""
    rows = inventory.of_spec(part.spec)
    if part.curvature_kind == "none" or part.follows is not None or not (refit or rows.rows != part.rows):
        return part
    if part.sampled or not rows.rows:
        log.warning(
            "the curvature of checkpoint %s stays as it is, because it represents rows of older checkpoints; "
            "lorif update with update.curvature=refit fits it again", part.checkpoint,
        )  # fmt: skip
        return part
    fit = fit_rows(store, compute, part.index_spec, part.curvature_spec, rows, lease)
    return replace(part, curvature=fit.curvature, left=0)
