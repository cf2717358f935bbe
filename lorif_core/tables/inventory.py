"""What a version of the factors holds: which rows of which shards lie in which fragment, and their counts.

Made from three small columns, never from codes. A worker writes a shard as one fragment, so a fragment has one
spec; a table that somebody has compacted by other means may mix shards, not specs.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from lorif_core.errors import LorifError
from lorif_core.tables.generation import Part, ranges

ShardKey = tuple[str, str]
"""(hash of the spec, key of the shard)."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Rows of one shard in one fragment. `file` names the fragment's content, whatever its number."""

    spec: str
    shard: str
    fragment: int
    file: str
    rows: int
    tokens: int

    @property
    def key(self) -> ShardKey:
        """Of the shard, as rows of its spec."""
        return self.spec, self.shard


@dataclass(frozen=True, slots=True)
class Inventory:
    """Holdings of one version of the factors, in the order of the table."""

    version: int
    holdings: tuple[Holding, ...]

    @property
    def keys(self) -> set[ShardKey]:
        """All shards, by spec."""
        return {holding.key for holding in self.holdings}

    @property
    def files(self) -> set[str]:
        """Names of the fragments' contents."""
        return {holding.file for holding in self.holdings}

    def specs(self) -> list[str]:
        """Hashes of the specs of the rows, in the order of their first fragment."""
        return list(dict.fromkeys(holding.spec for holding in self.holdings))

    def of_spec(self, spec: str) -> "Inventory":
        """Only the rows of a spec."""
        return Inventory(self.version, tuple(holding for holding in self.holdings if holding.spec == spec))

    def beyond(self, other: "Inventory") -> "Inventory":
        """What lies in fragments that the other has not."""
        files = other.files
        return Inventory(self.version, tuple(holding for holding in self.holdings if holding.file not in files))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(holding.rows for holding in self.holdings)

    @property
    def tokens(self) -> int:
        """Tokens of the rows."""
        return sum(holding.tokens for holding in self.holdings)

    @property
    def fragments(self) -> list[int]:
        """Numbers of the fragments, ascending."""
        return sorted({holding.fragment for holding in self.holdings})

    @property
    def fragment_ranges(self) -> tuple[tuple[int, int], ...]:
        """The fragments as (first, last) of the runs they form."""
        return ranges(self.fragments)

    def surplus(self, wanted: Set[ShardKey]) -> list[Holding]:
        """Holdings of shards that are not wanted, and later ones of shards that are there already."""
        first: dict[ShardKey, int] = {}
        for holding in sorted(self.holdings, key=lambda holding: holding.fragment):
            first.setdefault(holding.key, holding.fragment)
        return [
            holding
            for holding in self.holdings
            if holding.key not in wanted or holding.fragment != first[holding.key]
        ]


def parts_holding(parts: Iterable[Part], inventory: Inventory) -> list[Part]:
    """Parts with the counts and fragments that an inventory has of them, without those that nothing needs.

    A part is needed for its rows, or for a part that follows it.

    Raises:
        LorifError: there are rows that belong to none of the parts.
    """
    parts, specs = list(parts), set(inventory.specs())
    followed = {part.follows for part in parts if part.spec in specs}
    found = []
    for part in parts:
        own = inventory.of_spec(part.spec)
        if part.spec in specs | followed:
            found.append(replace(part, rows=own.rows, tokens=own.tokens, fragments=own.fragment_ranges))
    if not specs <= {part.spec for part in found}:
        raise LorifError("the index holds rows of a spec that it has no part for; build it again")
    return found if len(found) > 1 else [replace(part, fragments=None) for part in found]


def whole_fragments(inventory: Inventory, holdings: Iterable[Holding]) -> set[int]:
    """Fragments that have nothing but these holdings."""
    chosen = set(holdings)
    mixed = {holding.fragment for holding in inventory.holdings if holding not in chosen}
    return {holding.fragment for holding in chosen} - mixed
