"""Ray actors: glue between the cluster and lorif_core. State is only what can be made again from arguments."""

from collections.abc import Sequence
from typing import Any, TypeVar

import ray
import torch

from lorif_core.config import Config, ModelConfig
from lorif_core.curvature import ScanRequest, ScanResult, scan_blocks
from lorif_core.factors import CodeLayout
from lorif_core.index import Index
from lorif_core.queries import Query
from lorif_core.scoring import FoldedQueries
from lorif_core.shard import Receipt, ShardIndexer
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.store import Generation, Store
from lorif_core.topk import TopK
from tasks.cluster import Resources

Actor = TypeVar("Actor")

# Calls are idempotent, so a worker that dies is started again and its call repeated.
_RESTARTS = 3


@ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
class IndexActor:
    """Loads the model once and turns shards into uncommitted fragments."""

    def __init__(self, config: Config, spec_json: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._spec_json = config, spec_json
        self._indexer: ShardIndexer | None = None

    def index(self, shard: ShardRef) -> Receipt:
        """See `ShardIndexer.index`."""
        if self._indexer is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
            self._indexer = ShardIndexer(self._config, IndexSpec.from_json(self._spec_json))
        return self._indexer.index(shard)


@ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
class CurvatureActor:
    """Sums over its own fragments of one version of the factors."""

    def __init__(
        self, store: Store, spec_json: str, version: int, fragments: Sequence[int], block_rows: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        spec = IndexSpec.from_json(spec_json)
        self._layout = CodeLayout(spec.layers, spec.code)
        self._store, self._version = store, version
        self._fragments, self._block_rows = fragments, block_rows

    def scan(self, request: ScanRequest) -> ScanResult:
        """See `scan_blocks`."""
        blocks = self._store.scan(self._version, self._block_rows, self._fragments)
        return scan_blocks(((block.codes, block.scales) for block in blocks), self._layout, request)


@ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
class QueryActor:
    """Loads the model once, encodes queries and folds the curvature into them."""

    def __init__(self, store: Store, generation: Generation, model: ModelConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._model = model

    @ray.method(num_returns=2)
    def fold(self, queries: Sequence[Query]) -> tuple[FoldedQueries, list[float]]:
        """Folded queries, and the token-summed loss of each."""
        gradients = self._index.encoder(self._model).gradients(queries)
        return self._index.fold(gradients), gradients.losses.tolist()


@ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
class ScoreActor:
    """Scans fragments against folded queries and keeps the top k."""

    def __init__(self, store: Store, generation: Generation, memory_gb: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = Index(store, generation)
        self._memory_gb = memory_gb

    def top_k(self, folded: FoldedQueries, k: int, fragments: Sequence[int]) -> list[TopK]:
        """Top k of each query over some fragments."""
        return self._index.top_k_folded(folded, k, fragments, self._memory_gb)


def start(
    actor_class: Any,
    count: int,
    resources: Resources,
    *arguments: Any,
    with_model: bool = False,
    shares_cores: bool = False,
) -> list[Any]:
    """Start `count` actors of a class; each is told its share of cores as its last argument.

    Args:
        with_model: it loads the model, so it takes its GPUs; scans of codes do without.
        shares_cores: it works only while others wait, so it reserves no cores.
    """
    placed = actor_class.options(
        num_cpus=0 if shares_cores else resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker if with_model else 0,
    )
    return [placed.remote(*arguments, resources.cpus_per_worker) for _ in range(count)]


def stop(actors: Sequence[Any]) -> None:
    """End actors and free their cores."""
    for actor in actors:
        ray.kill(actor)
