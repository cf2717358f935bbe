"""The role of curvature scans. It imports neither transformers nor the model wing, so it starts quickly."""

from collections.abc import Sequence

import torch

from lorif_core.curvature.scan import ScanRequest, ScanResult
from lorif_core.spec import IndexSpec
from lorif_core.tables.row_sums import FragmentRows, RowSums
from lorif_core.tables.store import Store


class CurvatureRole:
    """Sums over fragments of one version of the table `factors`."""

    def __init__(self, store: Store, spec_json: str, version: int, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._sums = RowSums(store, IndexSpec.from_json(spec_json), version, rows)

    def scan(self, request: ScanRequest, part: Sequence[FragmentRows]) -> ScanResult:
        """See `RowSums.scan`."""
        return self._sums.scan(request, part)
