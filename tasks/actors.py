"""Ray actors: they connect the cluster to `lorif_core`. Their state can always be rebuilt from their arguments."""

from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lorif_core.config import Config, ModelConfig
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle.calibrate import SampledShard, ShardCalibrator
from lorif_core.lifecycle.drift import CheckpointDrift, DriftMeter
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.search.explanation import Explanation, explain
from lorif_core.search.index import Index
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import Query
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.generation import Generation
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.store import Store
from tasks.cluster import Resources, roomiest_node

SHARDS_AT_ONCE = 3  # one is read while one is computed and one is written


@ray.remote(max_concurrency=SHARDS_AT_ONCE)
class IndexActor:
    """Loads the model once and turns shards into uncommitted fragments and receipts, several shards at once."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec_json = config, spec_json
        self._indexer: ShardIndexer | None = None
        self._loading = Lock()

    def index(self, shard: ShardRef) -> Receipt:
        """See `ShardIndexer.index`."""
        with self._loading:
            if self._indexer is None:  # not in __init__, where an error would reach the caller as a dead actor
                self._indexer = ShardIndexer(self._config, IndexSpec.from_json(self._spec_json))
        return self._indexer.index(shard)


@ray.remote
class CalibrationActor:
    """Loads the model once and sums covariances over samples of shards."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec_json = config, spec_json
        self._calibrator: ShardCalibrator | None = None

    def covariances(self, sample: Sequence[SampledShard]) -> Covariances:
        """See `ShardCalibrator.covariances`."""
        if self._calibrator is None:  # not in __init__, where an error would reach the caller as a dead actor
            self._calibrator = ShardCalibrator(self._config, IndexSpec.from_json(self._spec_json))
        return self._calibrator.covariances(sample)


@ray.remote
class DriftActor:
    """Loads a new checkpoint once and compares stored rows with their codes at that checkpoint."""

    def __init__(self, config: Config, spec_json: str, older_json: str, version: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._arguments = config, IndexSpec.from_json(spec_json), IndexSpec.from_json(older_json), version
        self._meter: DriftMeter | None = None

    def measure(self, sample: Sequence[SampledShard]) -> CheckpointDrift:
        """See `DriftMeter.measure`."""
        if self._meter is None:  # not in __init__, where an error would reach the caller as a dead actor
            self._meter = DriftMeter(*self._arguments)
        return self._meter.measure(sample)


@ray.remote
class SampleActor:
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
        if self._indexer is None:  # not in __init__, where an error would reach the caller as a dead actor
            self._indexer = ShardIndexer(self._config, self._spec)
        if part.shard.key not in self._codes:
            rows, _, _ = self._indexer.encode(list(islice(self._indexer.read(part.shard), part.examples)))
            self._codes[part.shard.key] = torch.from_numpy(rows.codes), torch.from_numpy(rows.scales)
        return self._codes[part.shard.key]


@ray.remote
class CurvatureActor:
    """Sums over fragments of one version of the table `factors`."""

    def __init__(self, store: Store, spec_json: str, version: int, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        spec = IndexSpec.from_json(spec_json)
        self._layout = CodeLayout(spec.layers, spec.code)
        self._store, self._version, self._rows = store, version, rows

    def scan(self, request: ScanRequest, fragments: Sequence[int]) -> ScanResult:
        """See `scan_blocks`."""
        blocks = self._store.rows.scan(self._version, self._rows, fragments)
        return scan_blocks(((block.codes, block.scales) for block in blocks), self._layout, request)


@ray.remote
class QueryActor:
    """Loads the model once, encodes queries, folds the curvature into them and prepares them for a search."""

    def __init__(
        self, store: Store, generation: Generation, model: ModelConfig, memory_gb: float, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._model, self._memory_gb = model, memory_gb

    @ray.method(num_returns=2)
    def fold(self, queries: Sequence[Query], options: SearchOptions) -> tuple[list[float], list[PreparedQueries]]:
        """The token-summed loss of each query at the newest checkpoint, and the prepared queries for every part.

        These are two Ray objects, so that the second goes directly from this node's object store to the scorers.
        """
        gradients = self._index.encode(queries, self._model)
        return gradients[-1].losses.tolist(), self._index.prepare(
            self._index.fold(gradients, options), self._memory_gb
        )

    def explain(self, queries: Sequence[Query], best: Sequence[TopK]) -> list[Explanation]:
        """Explain the best examples of each query; see `explain`."""
        return [explain(self._index, query, top, self._model) for query, top in zip(queries, best, strict=True)]


@ray.remote
class ScoreActor:
    """Scans fragments against folded queries and keeps the top k."""

    def __init__(self, store: Store, generation: Generation, memory_gb: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._memory_gb = memory_gb

    def top_k(
        self, part: int, queries: list[PreparedQueries], k: int, fragments: Sequence[int], options: SearchOptions
    ) -> list[TopK]:
        """Top k of each query over some fragments of a part; `queries` are read in place in the object store."""
        return self._index.parts[part].top_k(queries[part], k, fragments, self._memory_gb, options)


def start(
    actor_class: Any,
    resources: Resources,
    *arguments: Any,
    with_model: bool = False,
    shares_cores: bool = False,
) -> Any:
    """Start an actor; its last argument is the number of cores that it may use.

    Args:
        with_model: the actor loads the model and reserves its GPUs; scans of codes need no GPU.
        shares_cores: the actor works only while others wait, so it reserves no cores.
    """
    reserves_nothing = shares_cores and not (with_model and resources.gpus_per_worker)
    # without reservations Ray could place it on any node, even the driver's; soft affinity does not prevent that
    beside_workers = NodeAffinitySchedulingStrategy(roomiest_node(), soft=False) if reserves_nothing else "DEFAULT"
    placed = actor_class.options(
        max_restarts=0,  # `Workers` replaces an actor that dies and decides which item caused it
        max_task_retries=0,
        num_cpus=0 if shares_cores else resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker if with_model else 0,
        scheduling_strategy=beside_workers,
    )
    return placed.remote(*arguments, resources.cpus_per_worker)
