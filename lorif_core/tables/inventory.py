"""The inventory of a version of `factors`: the shards in each fragment, with their numbers of rows and tokens.

It is made from the manifest and the recorded contents of files, without reading rows. A fragment has rows of many
shards, but of one spec.
"""

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from lorif_core.errors import LorifError
from lorif_core.tables.generation import Part, ranges

ShardKey = tuple[str, str]
"""(hash of the spec, key of the shard)."""


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """The rows of one shard in one fragment.

    `file` identifies the content of the fragment. It stays the same if the fragment's number changes.
    """

    spec: str
    shard: str
    fragment: int
    file: str
    rows: int
    tokens: int

    @property
    def key(self) -> ShardKey:
        """Key of the shard, with the spec of its rows."""
        return self.spec, self.shard


@dataclass(frozen=True, slots=True)
class Inventory:
    """The entries of one version of `factors`, or some of them, in the order of the table.

    Attributes:
        version: the version.
        entries: the entries.
        mixed: fragments that also have rows of other entries, if these are some of the entries of a version.
    """

    version: int
    entries: tuple[InventoryEntry, ...]
    mixed: frozenset[int] = frozenset()

    @property
    def keys(self) -> set[ShardKey]:
        """Keys of all shards, with their specs."""
        return {entry.key for entry in self.entries}

    @property
    def files(self) -> set[str]:
        """The `file` of all entries."""
        return {entry.file for entry in self.entries}

    def specs(self) -> list[str]:
        """Hashes of the specs of the rows, in the order of their first fragment."""
        return list(dict.fromkeys(entry.spec for entry in self.entries))

    def of_spec(self, spec: str) -> "Inventory":
        """The entries of one spec."""
        entries = tuple(entry for entry in self.entries if entry.spec == spec)
        return Inventory(self.version, entries, self.mixed)

    def outside(self, other: "Inventory") -> "Inventory":
        """The entries in fragments whose content is not in the other inventory, or not all of it."""
        files = other.files
        return Inventory(self.version, tuple(entry for entry in self.entries if entry.file not in files))

    def difference(self, other: "Inventory") -> "Inventory":
        """The entries of shards that the other inventory has not, or with other numbers of rows or tokens.

        A shard stays the same if its rows were written again together with those of other shards.
        """
        known = Counter((*entry.key, entry.rows, entry.tokens) for entry in other.entries)
        entries: list[InventoryEntry] = []
        mixed: set[int] = set()
        for entry in self.entries:
            content = (*entry.key, entry.rows, entry.tokens)
            if known[content]:
                known[content] -= 1
                mixed.add(entry.fragment)
            else:
                entries.append(entry)
        return Inventory(self.version, tuple(entries), frozenset(mixed & {entry.fragment for entry in entries}))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(entry.rows for entry in self.entries)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def fragments(self) -> list[int]:
        """Numbers of the fragments, ascending."""
        return sorted({entry.fragment for entry in self.entries})

    @property
    def selections(self) -> list[tuple[int, tuple[str, ...] | None]]:
        """The rows by fragment: its number, and the shards to read of it, or None for all of its rows."""
        shards: dict[int, list[str]] = {number: [] for number in self.fragments}
        for entry in self.entries:
            shards[entry.fragment].append(entry.shard)
        return [(number, tuple(keys) if number in self.mixed else None) for number, keys in shards.items()]

    @property
    def fragment_ranges(self) -> tuple[tuple[int, int], ...]:
        """Consecutive runs of fragment numbers, each as (first, last)."""
        return ranges(self.fragments)

    def surplus(self, expected: Set[ShardKey]) -> list[InventoryEntry]:
        """Entries of shards that are not expected, and all entries of a shard except in its first fragment."""
        first: dict[ShardKey, int] = {}
        for entry in sorted(self.entries, key=lambda entry: entry.fragment):
            first.setdefault(entry.key, entry.fragment)
        return [entry for entry in self.entries if entry.key not in expected or entry.fragment != first[entry.key]]


def recount_parts(parts: Iterable[Part], inventory: Inventory) -> list[Part]:
    """Parts with the counts and fragments of an inventory; parts that are not needed are left out.

    A part is needed if it has rows, or if a part with rows follows it.

    Raises:
        LorifError: some rows belong to none of the parts.
    """
    parts, specs = list(parts), set(inventory.specs())
    followed = {part.follows for part in parts if part.spec in specs}
    recounted = []
    for part in parts:
        own = inventory.of_spec(part.spec)
        if part.spec in specs | followed:
            recounted.append(replace(part, rows=own.rows, tokens=own.tokens, fragments=own.fragment_ranges))
    if not specs <= {part.spec for part in recounted}:
        raise LorifError("the index has rows of a spec for which it has no part; build it again")
    return recounted if len(recounted) > 1 else [replace(part, fragments=None) for part in recounted]


def fragments_only_of(inventory: Inventory, entries: Iterable[InventoryEntry]) -> set[int]:
    """Fragments of an inventory that contain no other entries than these."""
    selected = set(entries)
    mixed = {entry.fragment for entry in inventory.entries if entry not in selected}
    return {entry.fragment for entry in selected} - mixed
