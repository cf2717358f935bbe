"""The role of curvature scans. It imports neither transformers nor the model wing, so it starts quickly."""

from collections.abc import Iterator, Sequence

import torch

from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import IndexSpec
from lorif_core.tables.blocks import Block
from lorif_core.tables.sql import quoted
from lorif_core.tables.store import Store


class CurvatureRole:
    """Sums over fragments of one version of the table `factors`."""

    def __init__(self, store: Store, spec_json: str, version: int, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        spec = IndexSpec.from_json(spec_json)
        self._layout = CodeLayout(spec.layers, spec.code)
        self._store, self._version, self._rows = store, version, rows

    def scan(self, request: ScanRequest, part: Sequence[tuple[int, tuple[str, ...] | None]]) -> ScanResult:
        """See `scan_blocks`; a part is one of `Inventory.selections`."""
        return scan_blocks(((block.codes, block.scales) for block in self._blocks(part)), self._layout, request)

    def _blocks(self, part: Sequence[tuple[int, tuple[str, ...] | None]]) -> Iterator[Block]:
        whole = [fragment for fragment, shards in part if shards is None]
        yield from self._store.rows.scan(self._version, self._rows, whole)
        for fragment, shards in part:
            if shards is not None:
                condition = f"shard IN ({', '.join(quoted(shard) for shard in shards)})"
                yield from self._store.rows.scan(self._version, self._rows, [fragment], condition)
