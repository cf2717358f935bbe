"""The distributed fit: workers sum over their own fragments, the driver orthonormalises."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from lorif_core.config import Config
from lorif_core.curvature import (
    NO_ROWS,
    LayerCurvature,
    ScanRequest,
    ScanResult,
    fit_layers,
    layer_groups,
)
from lorif_core.plan import BuildPlan
from lorif_core.store import Store, block_rows
from tasks.actors import CurvatureActor, start, stop
from tasks.cluster import Resources
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


def scan_all(actors: Sequence[Any], request: ScanRequest, progress: Progress) -> ScanResult:
    """One pass: every worker scans its fragments; sums are added in worker order, so the result repeats."""
    shared = ray.put(request)
    total = NO_ROWS
    for pending in [actor.scan.remote(shared) for actor in actors]:
        part = ray.get(pending)
        progress.advance(part.rows)
        total += part
    return total
