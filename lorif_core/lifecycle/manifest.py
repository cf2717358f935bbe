"""The difference between a corpus and a generation: new, changed, moved and vanished files.

The generation is represented by its inventory, whose shard keys consist of file, ETag, size and range. A file that
is unchanged since the generation is not read.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from lorif_core.corpus.shards import Listing
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.tables.inventory import Inventory, ShardKey


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update changes in a generation.

    Attributes:
        shards: shards of the corpus to index.
        retained: shards that stay as they are.
        new: names of files of which the generation has no rows.
        changed: files whose rows are replaced.
        moved: files that have another name now, with the same ETag and size; their rows are replaced, too.
            The ETag of a local file is only its time; `Listing.not_moved` has those of other content.
        vanished: files that are no longer in the corpus.
        dropped_rows: rows that are removed: those of changed and moved files, and on request of vanished files.
        refreshed_rows: rows of older specs that `shards` replace.
    """

    shards: tuple[ShardRef, ...]
    retained: frozenset[ShardKey]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]
    vanished: tuple[str, ...]
    dropped_rows: int
    refreshed_rows: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be indexed or removed."""
        return not self.shards and not self.dropped_rows and not self.refreshed_rows


def known_files(inventory: Inventory, quarantined: Iterable[str]) -> set[FileTag]:
    """Files that a generation has without a gap from their first row on, and without a quarantined shard.

    A shard without a storable row is in no inventory. At the end of a file this does not matter: reading the file
    again would give the same rows.
    """
    ranges: dict[FileTag, set[tuple[int, int]]] = {}
    for _, shard in inventory.keys:
        file, start, stop = parse_shard_key(shard)
        ranges.setdefault(file, set()).add((start, stop))
    places = [*quarantined]
    return {
        file
        for file, file_ranges in ranges.items()
        if _is_gapless(sorted(file_ranges)) and not any(_is_in_file(place, file) for place in places)
    }


def _is_gapless(ranges: Sequence[tuple[int, int]]) -> bool:
    return ranges[0][0] == 0 and all(first[1] == second[0] for first, second in pairwise(ranges))


def _is_in_file(place: str, file: FileTag) -> bool:
    """Whether a quarantined place is this file, or a shard of it."""
    return place == file.name or place.startswith(f"{file.name}[")


def compare(
    inventory: Inventory, listing: Listing, remove_vanished: bool, refreshed: Set[str] = frozenset()
) -> Changes:
    """The changes that make a generation equal to the listed corpus.

    Args:
        inventory: inventory of the generation.
        listing: listing of the corpus, made with `known_files` of this inventory.
        remove_vanished: whether to remove rows of files that left the corpus.
        refreshed: specs whose rows are recomputed if the corpus still has them; the listing must then contain the
            shards of their files.
    """
    current_files = {file.name: file for file in listing.files}
    damaged = {name for name, _ in listing.damaged}
    listed = {shard.key for shard in listing.shards}
    up_to_date = {shard for spec, shard in inventory.keys if spec not in refreshed}
    indexed_names = {parse_shard_key(shard)[0].name for _, shard in inventory.keys}
    arrived = {(file.etag, file.size) for file in listing.files if file.name not in indexed_names | damaged}
    reread = {shard.file for shard in listing.shards}
    retained, dropped_rows, refreshed_rows = set[ShardKey](), 0, 0
    changed, moved, vanished = set[str](), set[str](), set[str]()
    for entry in inventory.entries:
        file, _, _ = parse_shard_key(entry.shard)
        if entry.shard in listed and entry.spec in refreshed:
            refreshed_rows += entry.rows
            continue
        if file.name in damaged or entry.shard in listed:
            stays = True
        elif file.name in current_files:
            stays = current_files[file.name] == file and file not in reread
            changed |= set() if stays else {file.name}
        elif (file.etag, file.size) in arrived and file not in listing.not_moved:
            stays = False
            moved.add(file.name)
        else:
            stays = not remove_vanished
            vanished.add(file.name)
        if stays:
            retained.add(entry.key)
        else:
            dropped_rows += entry.rows
    return Changes(
        shards=tuple(shard for shard in listing.shards if shard.key not in up_to_date),
        retained=frozenset(retained),
        new=tuple(sorted(current_files.keys() - indexed_names)),
        changed=tuple(sorted(changed)),
        moved=tuple(sorted(moved)),
        vanished=tuple(sorted(vanished)),
        dropped_rows=dropped_rows,
        refreshed_rows=refreshed_rows,
    )
