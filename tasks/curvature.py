"""The distributed fit: workers sum over their own fragments, the driver orthonormalises."""

from collections.abc import Iterator, Sequence

import ray

from lorif_core.config import Config
from lorif_core.curvature import (
    NO_ROWS,
    CurvatureSpec,
    LayerCurvature,
    ScanRequest,
    ScanResult,
    fit_layers,
    subspace_size,
)
from lorif_core.errors import UserError
from lorif_core.plan import BuildPlan
from lorif_core.store import Store, block_rows
from tasks.actors import CurvatureActor, start, stop
from tasks.cluster import Resources
from tasks.dispatch import Failed, dispatch
from tasks.progress import Progress


def fit_distributed(
    config: Config, plan: BuildPlan, store: Store, version: int, rows: int, resources: Resources
) -> Iterator[dict[int, LayerCurvature]]:
    """Fit all layers, a memory-bounded group after another, over one version of the factors."""
    dims = [layer.dim for layer in plan.spec.layers]
    groups = layer_groups(dims, rows, plan.curvature, config.compute.memory_gb)
    fragments = store.fragment_ids(version)
    count = min(resources.workers, len(fragments))
    rows_per_block = block_rows(plan.layout, config.compute.memory_gb)
    actors = [
        start(
            CurvatureActor, 1, resources, store, plan.spec.to_json(), version, fragments[w::count], rows_per_block
        )[0]
        for w in range(count)
    ]
    passes = len(groups) * (1 + (plan.curvature.power_iterations if plan.curvature.kind == "woodbury" else 0))
    try:
        with Progress("fit curvature", passes * rows) as progress:
            for group in groups:
                yield fit_layers(
                    group, dims, rows, plan.curvature, lambda request: scan_all(actors, request, progress)
                )
    finally:
        stop(actors)


def scan_all(actors: Sequence[object], request: ScanRequest, progress: Progress) -> ScanResult:
    """One pass: every worker scans its fragments, sums are added in worker order, so the result repeats."""
    shared = ray.put(request)
    finished: dict[int, ScanResult] = {}
    total, next_worker = NO_ROWS, 0
    for outcome in dispatch(actors, range(len(actors)), lambda _, worker: actors[worker].scan.remote(shared)):
        if isinstance(outcome, Failed):
            raise RuntimeError(f"a curvature worker failed: {outcome.cause}")
        progress.advance(outcome.result.rows)
        finished[outcome.item] = outcome.result
        while next_worker in finished:
            total += finished.pop(next_worker)
            next_worker += 1
    return total


def layer_groups(dims: Sequence[int], rows: int, spec: CurvatureSpec, memory_gb: float) -> list[list[int]]:
    """Layers fitted together: as many as fit into a worker's memory, so that passes over the data are few.

    Raises:
        UserError: one layer alone does not fit.
    """
    budget = memory_gb * 2**30
    groups: list[list[int]] = []
    used = budget
    for layer, dim in enumerate(dims):
        need = layer_bytes(dim, rows, spec)
        if need > budget:
            raise UserError(
                f"the {spec.kind} curvature of layer {layer} ({dim} gradient dimensions) needs "
                f"{need / 2**30:.1f} GiB of a worker, above compute.memory_gb = {memory_gb:g}; raise it, lower "
                f"curvature.rank or raise projection.factor"
            )
        if used + need > budget:
            groups.append([])
            used = 0.0
        groups[-1].append(layer)
        used += need
    return groups


def layer_bytes(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """Bytes a pass holds for a layer: its basis and its sums, in float32, and the Gram matrix in float64."""
    size = subspace_size(dim, rows, spec)
    basis = 0 if size == dim else 2 * 4 * dim * size
    return basis + 8 * size * size
