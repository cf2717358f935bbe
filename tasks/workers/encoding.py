"""The roles that load the model: they index shards, calibrate, measure drift, and encode samples."""

from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import TypeVar

import ray
import torch

from lorif_core.config import Config
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.free_memory import return_freed_memory
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.roots import WhitenedSide
from lorif_core.lifecycle.calibrate import (
    Counts,
    GroupSummary,
    Mixture,
    SampledShard,
    ShardCalibrator,
    SumsBySide,
    whiten_group,
)
from lorif_core.lifecycle.drift import CheckpointDrift, DriftMeter
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.receipts import JoinedReceipt, Receipt
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader
from tasks.workers.host import CALLS_AT_ONCE

_Encoder = TypeVar("_Encoder", ShardCalibrator, ShardIndexer)


class EncodingRole:
    """Loads the model once; sums covariances over samples of shards, and indexes shards, several at once."""

    calls_at_once = CALLS_AT_ONCE  # one shard is read while one is computed and one is written

    def __init__(self, config: Config, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config = config
        self._encoder: ShardCalibrator | ShardIndexer | None = None
        self._spec_json = ""
        self._changing = Lock()

    def load(self, spec_json: str) -> None:
        """Load the model of a spec, and check it."""
        spec = IndexSpec.from_json(spec_json)
        if not spec.projection.is_whitened or spec.projection.whitening is not None:
            self._made(ShardIndexer, spec_json)
        else:
            self._made(ShardCalibrator, spec_json)

    def sums(
        self, spec_json: str, sample: Sequence[SampledShard], groups: Sequence[range]
    ) -> list[Counts | SumsBySide]:
        """See `ShardCalibrator.parts`; one result for the numbers, and one for each group."""
        return self._made(ShardCalibrator, spec_json).parts(sample, groups)

    def whiten(
        self, spec_json: str, parts: Sequence[ray.ObjectRef], tokens: int, mixture: Mixture | None
    ) -> tuple[GroupSummary, list[WhitenedSide]]:
        """See `whiten_group`; the parts are wherever they were measured."""
        device = self._made(ShardCalibrator, spec_json).loaded.device
        store = Store(self._config.index, self._config.storage)
        return whiten_group([ray.get(part) for part in parts], tokens, device, store, mixture)

    def write_whitening(self, spec_json: str, header: WhiteningHeader, sides: Sequence[WhitenedSide]) -> list[str]:
        """See `WhiteningTable.write`."""
        store = Store(self._config.index, self._config.storage)
        return store.whitenings.write(header, sides, IndexSpec.from_json(spec_json).layers)

    def index(self, spec_json: str, shard: ShardRef) -> Receipt:
        """See `ShardIndexer.index`."""
        return self._made(ShardIndexer, spec_json).index(shard)

    def join(self, spec_json: str, receipts: Sequence[Receipt]) -> JoinedReceipt:
        """See `ShardIndexer.join`."""
        return self._made(ShardIndexer, spec_json).join(receipts)

    def _made(self, kind: type[_Encoder], spec_json: str) -> _Encoder:
        """The encoder of a kind and spec; a new one shares the model of the former, and replaces it."""
        with self._changing:  # not in __init__: an error here is that of the item
            encoder = self._encoder
            if not isinstance(encoder, kind) or self._spec_json != spec_json:
                loaded, self._encoder = None if encoder is None else encoder.loaded, None
                return_freed_memory()  # the next encoder computes in another thread
                encoder = kind(self._config, IndexSpec.from_json(spec_json), loaded)
                self._encoder, self._spec_json = encoder, spec_json
            return encoder


class DriftRole:
    """Loads a new checkpoint once and compares stored rows with their codes at that checkpoint."""

    def __init__(self, config: Config, spec_json: str, older_json: str, version: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._arguments = config, IndexSpec.from_json(spec_json), IndexSpec.from_json(older_json), version
        self._meter: DriftMeter | None = None

    def measure(self, sample: Sequence[SampledShard]) -> CheckpointDrift:
        """See `DriftMeter.measure`."""
        if self._meter is None:  # not in __init__: an error here is that of the item
            self._meter = DriftMeter(*self._arguments)
        return self._meter.measure(sample)


class SampleRole:
    """Loads a new checkpoint once, caches the codes of samples of shards at it, and sums over these codes."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec = config, IndexSpec.from_json(spec_json)
        self._layout = CodeLayout(self._spec.layers, self._spec.code)
        self._indexer: ShardIndexer | None = None
        self._codes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def scan(self, request: ScanRequest, sample: Sequence[SampledShard]) -> ScanResult:
        """See `scan_blocks`."""
        return scan_blocks((self._encoded(part) for part in sample), self._layout, request)

    def _encoded(self, part: SampledShard) -> tuple[torch.Tensor, torch.Tensor]:
        if self._indexer is None:  # not in __init__: an error here is that of the item
            self._indexer = ShardIndexer(self._config, self._spec)
        if part.shard.key not in self._codes:
            rows, _, _ = self._indexer.encode(list(islice(self._indexer.read(part.shard), part.examples)))
            self._codes[part.shard.key] = torch.from_numpy(rows.codes), torch.from_numpy(rows.scales)
        return self._codes[part.shard.key]
