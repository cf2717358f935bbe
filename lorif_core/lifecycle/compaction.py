"""Compaction: small fragments, as updates leave them, are joined in large ones, and a generation is published.

Lance's own compaction joins neighbours, also of different specs, and then no part of a generation would have
fragments of its own. So fragments of one spec are joined here, and their contents are recorded.
"""

import logging

from lorif_core.errors import UserError
from lorif_core.lifecycle.publishing import publish_again
from lorif_core.storage.lease import Lease
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.shard_rows import FRAGMENT_BYTES, fragment_bytes, join_fragments
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)


def compact(store: Store, lease: Lease) -> Generation:
    """Publish the newest generation with fewer, larger fragments; rows, curvatures and scores stay the same.

    Args:
        store: the index.
        lease: lease of the index, held by this process.

    Raises:
        UserError: an unfinished command has committed rows that no generation has.
    """
    base = store.latest()
    inventory = store.rows.inventory(base.factors_version)
    if store.rows.inventory(known=inventory).files != inventory.files:
        raise UserError(
            f"the index {store.uri} has rows of an unfinished build or update; run that command to its end first"
        )
    compacted = compact_rows(store, lease, inventory)
    if compacted.version == inventory.version:
        return base
    changes = base.change("compact", fragments=len(compacted.fragments))
    return publish_again(store, lease, base, compacted, changes)


def compact_rows(store: Store, lease: Lease, inventory: Inventory, least: int = 1) -> Inventory:
    """Join small fragments of the newest version of `factors`; returns its inventory.

    Args:
        store: the index.
        lease: lease of the index, held by this process.
        inventory: inventory of the rows of the newest version.
        least: the number of fragments that must disappear for it to be worth a version.
    """
    tables = Tables(store.uri, store.storage)
    groups = small_fragments(inventory, fragment_bytes(tables, inventory.version))
    surplus = sum(map(len, groups)) - len(groups)
    if surplus < max(least, 1):
        return inventory
    lease.confirm()
    join_fragments(tables, groups)
    log.info("%d fragments are %d now", len(inventory.fragments), len(inventory.fragments) - surplus)
    return store.rows.inventory(known=inventory)


def small_fragments(inventory: Inventory, sizes: dict[int, int]) -> list[list[int]]:
    """Groups of small fragments of one spec, in the order of the table; each makes a large one, or what is left.

    Args:
        inventory: the fragments.
        sizes: their bytes.
    """
    groups: list[list[int]] = []
    for spec in inventory.specs():
        group: list[int] = []
        for number in inventory.of_spec(spec).fragments:
            if sizes[number] > FRAGMENT_BYTES // 2:
                continue
            group.append(number)
            if sum(sizes[member] for member in group) >= FRAGMENT_BYTES:
                groups.append(group)
                group = []
        groups.append(group)
    return [group for group in groups if len(group) > 1]
