"""Sums over stored rows, as a curvature fit requests them."""

from collections.abc import Iterator, Sequence

from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import IndexSpec
from lorif_core.tables.blocks import Block
from lorif_core.tables.sql import quoted
from lorif_core.tables.store import Store

FragmentRows = tuple[int, tuple[str, ...] | None]
"""The number of a fragment and the shards in it to read, None for all; see `Inventory.selections`."""


class RowSums:
    """Reads the rows of some fragments of one version of the table `factors`, and sums over them.

    Args:
        store: the tables.
        spec: spec of the rows.
        version: version of the table.
        rows: number of rows to hold in memory at a time.
    """

    def __init__(self, store: Store, spec: IndexSpec, version: int, rows: int) -> None:
        self._layout = CodeLayout(spec.layers, spec.code)
        self._store, self._version, self._rows = store, version, rows

    def scan(self, request: ScanRequest, part: Sequence[FragmentRows]) -> ScanResult:
        """See `scan_blocks`."""
        return scan_blocks(((block.codes, block.scales) for block in self._blocks(part)), self._layout, request)

    def _blocks(self, part: Sequence[FragmentRows]) -> Iterator[Block]:
        whole = [fragment for fragment, shards in part if shards is None]
        yield from self._store.rows.scan(self._version, self._rows, whole)
        for fragment, shards in part:
            if shards is not None:
                condition = f"shard IN ({', '.join(quoted(shard) for shard in shards)})"
                yield from self._store.rows.scan(self._version, self._rows, [fragment], condition)
