"""Peak memory of each process of a build and of a query, estimated before anything runs.

Everything depends on shapes only: the weights, the tensors of a batch (`footprint.py`), covariances and roots.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lorif_core.config import Config
from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.footprint import BatchShape, Rehearsal
from lorif_core.gradients.whitening import covariance_bytes
from lorif_core.model.loading import Skeleton
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec
from lorif_core.tables.blocks import block_rows

WORKER_PROCESS = 520 * 2**20
"""Resident bytes of a worker before it loads a model: Python, Ray, torch, transformers and Lance."""
DRIVER_PROCESS = 640 * 2**20
"""Resident bytes of the process of a command while others work: those, and Prefect where it runs."""
_DENSE = CodeSpec("dense", 1, "float32")  # of a query
_HEAP = 1.4  # of the bytes of tensors on the host: its allocator keeps pieces that no batch of another length fits
_WRITTEN = 3  # times that rows to write are in memory: encoded, in Arrow, and in Lance's buffers


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the peak of each process; None where the model's code cannot be followed without weights.

    Attributes:
        weights: of the model, which calibration, indexing and query contain.
        calibration: of a worker that measures covariances; None too if there is nothing to measure.
        indexing: of a worker that indexes shards.
        query: of a process that answers one query as long as the longest example.
        driver: of the process of the command itself.
    """

    weights: int
    calibration: int | None
    indexing: int | None
    query: int | None
    driver: int


def weight_bytes(model: torch.nn.Module, dtype: str) -> int:
    """Bytes of a model's weights and buffers in a dtype; the model may be a skeleton."""
    size = getattr(torch, dtype).itemsize
    parameters = sum(
        item.numel() * (size if item.is_floating_point() else item.itemsize) for item in model.parameters()
    )
    return parameters + sum(buffer.nbytes for buffer in model.buffers())


def weight_bytes_of(config: Config, skeleton: Skeleton) -> int:
    """`weight_bytes` in the dtype that the config chooses."""
    return weight_bytes(skeleton.model, skeleton.dtype if config.model.dtype == "auto" else config.model.dtype)


def plan_memory(
    model: Any, spec: IndexSpec, batch: BatchShape, memory_gb: float, process: int = WORKER_PROCESS
) -> MemoryPlan:
    """Estimate the peaks.

    Args:
        model: the model on the meta device.
        spec: spec of the rows.
        batch: the largest batch.
        memory_gb: `compute.memory_gb`.
        process: bytes of a worker without a model; zero for those of a GPU.
    """
    rehearsal = Rehearsal(model, getattr(torch, spec.model_dtype), spec.layers, spec.projection)
    weights, covariances = weight_bytes(model, spec.model_dtype), 0
    if spec.projection.is_whitened:
        covariances = covariance_bytes(spec.layers)
    fixed = process + weights + projection_bytes(spec)
    layout = CodeLayout(spec.layers, spec.code)
    rows = _WRITTEN * min(SHARD_ROWS, block_rows(layout, memory_gb)) * layout.bytes_per_example
    roots = covariances // 2 + covariances // 8  # in float32, and packed as they are stored
    largest = max(max(layer.d1, layer.d2) for layer in spec.layers)

    heap = _HEAP if process else 1.0

    def total(passes: int | None, *parts: int) -> int | None:
        return None if passes is None else fixed + round(heap * passes) + sum(parts)

    calibration = None
    if covariances:
        # what a part of the sample sums up is copied once, to be sent
        calibration = total(rehearsal.calibration(batch), 2 * covariances)
    return MemoryPlan(
        weights=weights,
        calibration=calibration,
        indexing=total(rehearsal.codes(batch, spec.code), roots, rows),
        query=total(rehearsal.codes(BatchShape(1, batch.tokens), _DENSE, decode=True), roots, 4 * 8 * largest**2),
        driver=DRIVER_PROCESS,
    )


def projection_bytes(spec: IndexSpec) -> int:
    """Bytes of the matrices of a random projection, which layers with the same input share; folds have none."""
    if spec.projection.is_folded or spec.projection.factor == 1:
        return 0
    inner = {(layer.name.rpartition(".")[0], layer.in_features, layer.d1): layer for layer in spec.layers}
    size = getattr(torch, spec.model_dtype).itemsize

    def sides(layer: LayerSpec) -> int:
        return layer.out_features * layer.d2

    return size * (sum(layer.in_features * layer.d1 for layer in inner.values()) + sum(map(sides, spec.layers)))
