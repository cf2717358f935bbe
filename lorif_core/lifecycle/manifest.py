"""The difference between a corpus and what a generation holds of it: new, changed, moved and vanished files.

The generation's side is its inventory: keys of shards name file, ETag, size and range. A file that it holds as it
is in the corpus now is not even read.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from lorif_core.corpus.shards import Listing
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.tables.inventory import Inventory, ShardKey


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of the rows of a generation, and what is indexed beside those that stay.

    Attributes:
        shards: of the corpus, to be indexed.
        kept: shards that stay as they are.
        new: names of files that the generation has nothing of.
        changed: files whose rows are replaced.
        moved: files that are there under another name, with the same ETag and size; their rows are replaced too.
        vanished: files that are no longer in the corpus.
        dropped_rows: rows that leave, of changed and moved files, and of vanished ones if they are to go.
        refreshed_rows: rows of older specs that the shards replace.
    """

    shards: tuple[ShardRef, ...]
    kept: frozenset[ShardKey]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]
    vanished: tuple[str, ...]
    dropped_rows: int
    refreshed_rows: int = 0

    @property
    def are_none(self) -> bool:
        """Whether the corpus is as the generation has it."""
        return not self.shards and not self.dropped_rows and not self.refreshed_rows


def known_files(inventory: Inventory, quarantined: Iterable[str]) -> set[FileTag]:
    """Files that a generation holds without a gap from their first row on; none that had a part in quarantine.

    A shard without a storable row is held by no generation. At the end of a file it is not missed: the same file
    would give the same again.
    """
    ranges: dict[FileTag, set[tuple[int, int]]] = {}
    for _, shard in inventory.keys:
        file, start, stop = parse_shard_key(shard)
        ranges.setdefault(file, set()).add((start, stop))
    without = [*quarantined]
    return {
        file
        for file, found in ranges.items()
        if _is_gapless(sorted(found)) and not any(_names(place, file) for place in without)
    }


def _is_gapless(ranges: Sequence[tuple[int, int]]) -> bool:
    return ranges[0][0] == 0 and all(first[1] == second[0] for first, second in pairwise(ranges))


def _names(place: str, file: FileTag) -> bool:
    """Whether what was quarantined is a file of this name, or a shard of it."""
    return place == file.name or place.startswith(f"{file.name}[")


def compare(
    inventory: Inventory, listing: Listing, remove_vanished: bool, refreshed: Set[str] = frozenset()
) -> Changes:
    """What has to be done to a generation so that it is one of the corpus as it was listed.

    Args:
        inventory: of the generation.
        listing: of the corpus, made with `known_files` of that inventory.
        remove_vanished: rows of files that left the corpus go; otherwise they stay.
        refreshed: specs whose rows are computed anew where the corpus still has them; the listing must then have
            the shards of their files.
    """
    present = {file.name: file for file in listing.files}
    damaged = {name for name, _ in listing.damaged}
    listed = {shard.key for shard in listing.shards}
    held = {shard for _, shard in inventory.keys}
    as_wanted = {shard for spec, shard in inventory.keys if spec not in refreshed}
    held_names = {parse_shard_key(shard)[0].name for shard in held}
    arrived = {(file.etag, file.size) for file in listing.files if file.name not in held_names | damaged}
    reread = {shard.file for shard in listing.shards}
    kept, dropped_rows, refreshed_rows = set[ShardKey](), 0, 0
    changed, moved, vanished = set[str](), set[str](), set[str]()
    for holding in inventory.holdings:
        file, _, _ = parse_shard_key(holding.shard)
        if holding.shard in listed and holding.spec in refreshed:
            refreshed_rows += holding.rows
            continue
        if file.name in damaged or holding.shard in listed:
            stays = True
        elif file.name in present:
            stays = present[file.name] == file and file not in reread
            changed |= set() if stays else {file.name}
        elif (file.etag, file.size) in arrived:
            stays = False
            moved.add(file.name)
        else:
            stays = not remove_vanished
            vanished.add(file.name)
        if stays:
            kept.add(holding.key)
        else:
            dropped_rows += holding.rows
    return Changes(
        shards=tuple(shard for shard in listing.shards if shard.key not in as_wanted),
        kept=frozenset(kept),
        new=tuple(sorted(present.keys() - held_names)),
        changed=tuple(sorted(changed)),
        moved=tuple(sorted(moved)),
        vanished=tuple(sorted(vanished)),
        dropped_rows=dropped_rows,
        refreshed_rows=refreshed_rows,
    )
