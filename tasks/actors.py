"""Ray actors: glue between the cluster and lorif_core. State is only what can be made again from arguments."""

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
from lorif_core.search.options import Terms
from lorif_core.search.queries import Query
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Sought
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.generation import Generation
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.store import Store
from tasks.cluster import Resources, roomiest_node

SHARDS_AT_ONCE = 3  # one is read while one computes and one is written


@ray.remote(max_concurrency=SHARDS_AT_ONCE)
class IndexActor:
    """Loads the model once and turns shards into uncommitted fragments and receipts, several at once."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec_json = config, spec_json
        self._indexer: ShardIndexer | None = None
        self._loading = Lock()

    def index(self, shard: ShardRef) -> Receipt:
        """See `ShardIndexer.index`."""
        with self._loading:
            if self._indexer is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
                self._indexer = ShardIndexer(self._config, IndexSpec.from_json(self._spec_json))
        return self._indexer.index(shard)


@ray.remote
class CalibrationActor:
    """Loads the model once and adds up covariances over samples of shards."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec_json = config, spec_json
        self._calibrator: ShardCalibrator | None = None

    def covariances(self, sample: Sequence[SampledShard]) -> Covariances:
        """See `ShardCalibrator.covariances`."""
        if self._calibrator is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
            self._calibrator = ShardCalibrator(self._config, IndexSpec.from_json(self._spec_json))
        return self._calibrator.covariances(sample)


@ray.remote
class DriftActor:
    """Loads a new checkpoint once and compares samples of older rows with what it makes of them."""

    def __init__(self, config: Config, spec_json: str, older_json: str, version: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._made_from = config, IndexSpec.from_json(spec_json), IndexSpec.from_json(older_json), version
        self._meter: DriftMeter | None = None

    def measure(self, sample: Sequence[SampledShard]) -> CheckpointDrift:
        """See `DriftMeter.measure`."""
        if self._meter is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
            self._meter = DriftMeter(*self._made_from)
        return self._meter.measure(sample)


@ray.remote
class SampleActor:
    """Loads a new checkpoint once, keeps the codes that it gives samples of shards, and sums over them."""

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
        if self._indexer is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
            self._indexer = ShardIndexer(self._config, self._spec)
        if part.shard.key not in self._codes:
            rows, _, _ = self._indexer.encode(list(islice(self._indexer.read(part.shard), part.examples)))
            self._codes[part.shard.key] = torch.from_numpy(rows.codes), torch.from_numpy(rows.scales)
        return self._codes[part.shard.key]


@ray.remote
class CurvatureActor:
    """Sums over fragments of one version of the factors."""

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
    """Loads the model once, encodes queries, folds the curvature into them and makes them ready for a search."""

    def __init__(
        self, store: Store, generation: Generation, model: ModelConfig, memory_gb: float, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._model, self._memory_gb = model, memory_gb

    @ray.method(num_returns=2)
    def fold(self, queries: Sequence[Query], terms: Terms) -> tuple[list[float], list[Sought]]:
        """The token-summed loss of each query under the newest checkpoint, and what every part is searched with.

        Two objects: the second goes from the object store of this node to the scorers, by way of nobody.
        """
        gradients = self._index.encode(queries, self._model)
        return gradients[-1].losses.tolist(), self._index.sought(
            self._index.fold(gradients, terms), self._memory_gb
        )

    def explain(self, queries: Sequence[Query], best: Sequence[TopK]) -> list[Explanation]:
        """See `explain`; of each of the queries, with what was found."""
        return [explain(self._index, query, top, self._model) for query, top in zip(queries, best, strict=True)]


@ray.remote
class ScoreActor:
    """Scans fragments against folded queries and keeps the top k."""

    def __init__(self, store: Store, generation: Generation, memory_gb: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._memory_gb = memory_gb

    def top_k(
        self, part: int, queries: list[Sought], k: int, fragments: Sequence[int], terms: Terms
    ) -> list[TopK]:
        """Top k of each query over some fragments of a part; `queries` are read where they lie in the store."""
        return self._index.parts[part].top_k(queries[part], k, fragments, self._memory_gb, terms)


def start(
    actor_class: Any,
    resources: Resources,
    *arguments: Any,
    with_model: bool = False,
    shares_cores: bool = False,
) -> Any:
    """Start an actor of a class; it is told its share of cores as its last argument.

    Args:
        with_model: it loads the model, so it takes its GPUs; scans of codes do without.
        shares_cores: it works only while others wait, so it reserves no cores.
    """
    reserves_nothing = shares_cores and not (with_model and resources.gpus_per_worker)
    # Ray would place it on any node, such as one that is there for the driver alone; soft affinity is no better
    beside_workers = NodeAffinitySchedulingStrategy(roomiest_node(), soft=False) if reserves_nothing else "DEFAULT"
    placed = actor_class.options(
        max_restarts=0,  # `Workers` replaces an actor that dies and decides who is to blame
        max_task_retries=0,
        num_cpus=0 if shares_cores else resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker if with_model else 0,
        scheduling_strategy=beside_workers,
    )
    return placed.remote(*arguments, resources.cpus_per_worker)
