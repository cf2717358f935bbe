"""The distributed fit: workers sum over their own fragments, the driver orthonormalises."""

from collections.abc import Iterator, Sequence

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
from lorif_core.errors import LorifError
from lorif_core.plan import BuildPlan
from lorif_core.store import Store, block_rows
from tasks.actors import CurvatureActor, start
from tasks.cluster import Resources
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress


def fit_distributed(
    config: Config,
    plan: BuildPlan,
    store: Store,
    version: int,
    rows: int,
    layers: Sequence[int],
    resources: Resources,
) -> Iterator[dict[int, LayerCurvature]]:
    """Fit some layers, a memory-bounded group after another, over one version of the factors."""
    dims = [layer.dim for layer in plan.spec.layers]
    groups = layer_groups(dims, rows, plan.curvature, config.compute.memory_gb)
    groups = [missing for group in groups if (missing := [layer for layer in group if layer in layers])]
    fragments = store.fragment_ids(version)
    count = min(resources.workers, len(fragments))
    parts = [fragments[worker::count] for worker in range(count)]
    at_once = block_rows(plan.layout, config.compute.memory_gb)
    passes = len(groups) * (1 + (plan.curvature.power_iterations if plan.curvature.kind == "woodbury" else 0))
    spec = plan.spec.to_json()
    with (
        Workers(lambda: start(CurvatureActor, resources, store, spec, version, at_once), count) as workers,
        Progress("fit curvature", passes * rows) as progress,
    ):
        for group in groups:
            yield fit_layers(
                group, dims, rows, plan.curvature, lambda request: scan_all(workers, parts, request, progress)
            )


def scan_all(
    workers: Workers, parts: Sequence[Sequence[int]], request: ScanRequest, progress: Progress
) -> ScanResult:
    """One pass over all parts; sums are added in the order of the parts, so that the result repeats."""
    shared = ray.put(request)
    found: dict[int, ScanResult] = {}
    numbered = list(enumerate(parts))
    for outcome in workers.run(numbered, lambda actor, part: actor.scan.remote(shared, part[1]), in_flight=1):
        if isinstance(outcome, Failed):
            raise LorifError(f"scanning {len(outcome.item[1])} fragments failed: {outcome.cause}")
        found[outcome.item[0]] = outcome.result
        progress.advance(outcome.result.rows)
    return sum((found[number] for number, _ in numbered), start=NO_ROWS)
