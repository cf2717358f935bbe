"""Local files that seem to have moved, because files of their time and size arrived, but with other content."""

from collections import defaultdict
from collections.abc import Sequence, Set
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.config import Config
from lorif_core.corpus.shards import Listing
from lorif_core.errors import LorifError
from lorif_core.lifecycle.example_length import with_stored_length
from lorif_core.lifecycle.index_shard import Tokenising, read_examples
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store

_ROWS_PER_SHARD = 16
_READS = 1024  # that are remembered, because many files can share a time and a size

RowContent = tuple[int, str, str]
"""(row in the file, id if the corpus has ids, content hash) of an example that the row makes."""


def find_not_moved(
    config: Config, listing: Listing, inventory: Inventory, store: Store, tokenising: Tokenising
) -> frozenset[FileTag]:
    """Local files that left the corpus, and whose rows are in no arrived file of the same time and size.

    Rows of the first and of the last stored shard are compared. If they cannot be compared, the file counts as not
    moved, so that its rows stay.

    Args:
        config: config of the update.
        listing: listing of the corpus, with the shards of new files.
        inventory: inventory of the generation.
        store: the index.
        tokenising: what makes examples of records.

    Raises:
        LorifError: rows of the index cannot be read.
    """
    if config.corpus.uri.partition("://")[1] and not config.corpus.uri.startswith("file://"):
        return frozenset()  # the ETag of an object stands for its content
    indexed = {parse_shard_key(shard)[0] for _, shard in inventory.keys}
    indexed_names, current_names = {file.name for file in indexed}, {file.name for file in listing.files}
    arrived: defaultdict[tuple[str, int], list[FileTag]] = defaultdict(list)
    for file in listing.files:
        if file.name not in indexed_names:
            arrived[file.etag, file.size].append(file)
    doubtful = {file for file in indexed if file.name not in current_names and (file.etag, file.size) in arrived}
    if not doubtful:
        return frozenset()
    shards: defaultdict[FileTag, list[ShardRef]] = defaultdict(list)
    for shard in listing.shards:
        shards[shard.file].append(shard)
    corpus_config = with_stored_length(config)

    @lru_cache(_READS)
    def read(file: FileTag, rows: frozenset[int]) -> frozenset[RowContent]:
        return _read(corpus_config, tokenising, shards[file], rows)

    stored = _stored_rows(store, inventory, doubtful, config.corpus.id is not None)
    return frozenset(
        file
        for file in doubtful
        if not any(
            stored[file] <= read(other, frozenset(row for row, _, _ in stored[file]))
            for other in arrived[file.etag, file.size]
        )
    )


def _stored_rows(
    store: Store, inventory: Inventory, files: Set[FileTag], has_ids: bool
) -> dict[FileTag, set[RowContent]]:
    """Some rows of the first and of the last shard of each file."""
    keys: defaultdict[FileTag, list[tuple[int, str]]] = defaultdict(list)
    fragments: defaultdict[str, set[int]] = defaultdict(set)
    for entry in inventory.entries:
        file, start, _ = parse_shard_key(entry.shard)
        if file in files:
            keys[file].append((start, entry.shard))
            fragments[entry.shard].add(entry.fragment)
    chosen = {file: {min(starts)[1], max(starts)[1]} for file, starts in keys.items()}
    wanted = sorted(set().union(*chosen.values()))
    numbers = sorted(set().union(*(fragments[shard] for shard in wanted)))
    rows: defaultdict[str, set[RowContent]] = defaultdict(set)
    for batch in store.rows.metadata(inventory.version, ["shard", "row", "example_id", "content_hash"], numbers):
        for row in batch.filter(pc.is_in(batch.column("shard"), pa.array(wanted))).to_pylist():
            rows[row["shard"]].add((row["row"], row["example_id"] if has_ids else "", row["content_hash"]))
    return {file: set().union(*(_spread(rows[shard]) for shard in shards)) for file, shards in chosen.items()}


def _spread(contents: Set[RowContent]) -> set[RowContent]:
    """The contents of at most `_ROWS_PER_SHARD` rows, from the first to the last."""
    rows = sorted({row for row, _, _ in contents})
    steps = min(_ROWS_PER_SHARD, len(rows)) - 1
    selected = {rows[step * (len(rows) - 1) // max(steps, 1)] for step in range(steps + 1)}
    return {content for content in contents if content[0] in selected}


def _read(
    config: Config, tokenising: Tokenising, shards: Sequence[ShardRef], rows: Set[int]
) -> frozenset[RowContent]:
    """The contents of some rows of a file; none if they cannot be read."""
    has_ids, contents = config.corpus.id is not None, set[RowContent]()
    try:
        for shard in shards:
            if not rows.isdisjoint(range(shard.start, shard.start + shard.rows)):
                for example in read_examples(shard, config, tokenising, rows):
                    contents.add((example.row, example.example_id if has_ids else "", example.content_hash))
    except LorifError:  # what is wrong with the file is reported when it is indexed
        return frozenset()
    return frozenset(contents)
