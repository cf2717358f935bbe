"""The distributed fit of a curvature: workers sum over their own fragments, and the driver orthonormalises."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import ray

from lorif_core.config import ComputeConfig, Config
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import NO_ROWS, ScanRequest, ScanResult
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.errors import LorifError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.curvature_fit import (
    Fit,
    count_passes,
    fit_id,
    memory_groups,
    missing_layers,
    write_group,
)
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import BuildPlan, check_curvature
from lorif_core.out_of_memory import MemorySetting
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import scan_settings
from tasks.orchestration import task
from tasks.progress import Progress
from tasks.workers.curvature import CurvatureRole
from tasks.workers.start import start


@task("fit curvature", retried=True)
def fit_curvature(config: Config, plan: BuildPlan, indexed: IndexedRows, lease: Lease) -> Fit:
    """Fit the curvature of all rows of a build and write it."""
    rows = indexed.inventory.of_spec(plan.spec.hash)
    check_curvature(config, plan.spec.layers, rows.rows)
    store = Store(config.index, config.storage)
    return fit_rows(store, config.compute, plan.spec, plan.curvature, rows, lease)


def fit_rows(
    store: Store, compute: ComputeConfig, spec: IndexSpec, settings: CurvatureSpec, rows: Inventory, lease: Lease
) -> Fit:
    """Fit and write the curvature of some rows, all of one spec.

    The id is a hash of the rows and the settings, so a fit that was killed continues with the missing layers.
    """
    started = time.perf_counter()
    curvature_id = fit_id(spec.hash, rows.version, asdict(settings))
    if settings.kind != "none":
        missing = missing_layers(store, spec, curvature_id)
        with cluster(compute) as resources:
            for group in fit_distributed(store, compute, spec, settings, rows, missing, resources):
                write_group(store, spec, curvature_id, group, lease)
    how: Literal["none", "fitted"] = "none" if settings.kind == "none" else "fitted"
    return Fit(curvature_id, store.curvatures.version(), how, 0, time.perf_counter() - started)


def fit_distributed(
    store: Store,
    compute: ComputeConfig,
    spec: IndexSpec,
    settings: CurvatureSpec,
    rows: Inventory,
    layers: Sequence[int],
    resources: Resources,
) -> Iterator[dict[int, LayerCurvature]]:
    """Fit some layers over rows of one version of the factors, in groups that are bounded by memory."""
    dims = [layer.dim for layer in spec.layers]
    groups = memory_groups(spec, settings, rows.rows, compute, layers)
    passes = len(groups) * count_passes(settings)
    with row_scanners(store, compute, spec, rows, resources, "fit curvature", passes) as scanners:
        for group in groups:
            yield fit_layers(group, dims, rows.rows, settings, scanners.scan)


def row_scanners(
    store: Store,
    compute: ComputeConfig,
    spec: IndexSpec,
    rows: Inventory,
    resources: Resources,
    title: str,
    passes: int,
    *,
    shares_cores: bool = False,
) -> "Scanners":
    """Workers that sum over some rows, divided by fragments.

    Args:
        store: the index.
        compute: the memory of a worker.
        spec: spec of the rows.
        rows: inventory of the rows in one version of the factors.
        resources: resources of the cluster.
        title: title of the progress.
        passes: expected passes over the rows.
        shares_cores: the workers work only while others wait.
    """
    count = min(resources.workers, len(rows.fragments))
    parts = [rows.selections[worker::count] for worker in range(count)]
    block_size = scan_rows(CodeLayout(spec.layers, spec.code), compute.memory_gb)
    spec_json, version = spec.to_json(), rows.version

    def spawn() -> Any:
        return start(CurvatureRole, resources, store, spec_json, version, block_size, shares_cores=shares_cores)

    return Scanners(spawn, parts, title, passes * rows.rows, scan_settings(compute))


class Scanners:
    """Workers that sum over parts of some rows, for the length of a `with` block.

    Args:
        spawn: starts a worker whose role has a method `scan` that takes a request and a part.
        parts: parts of the rows, one per worker.
        title: title of the progress.
        rows: expected number of rows over all passes.
        memory: the settings that bound the memory of a worker.
    """

    def __init__(
        self,
        spawn: Callable[[], Any],
        parts: Sequence[Sequence[Any]],
        title: str,
        rows: int,
        memory: Sequence[MemorySetting],
    ) -> None:
        self._parts = parts
        self._workers = Workers(spawn, len(parts), memory)
        self._progress = Progress(title, rows)

    def __enter__(self) -> "Scanners":
        self._workers.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._progress.__exit__(*raised)
        self._workers.__exit__(*raised)

    def scan(self, request: ScanRequest) -> ScanResult:
        """Make one pass over all parts; sums are added in the order of the parts, so that the result repeats."""
        shared = ray.put(request)
        results: dict[int, ScanResult] = {}
        numbered = list(enumerate(self._parts))
        outcomes = self._workers.run(numbered, lambda host, part: host.call("scan", shared, part[1]), in_flight=1)
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise LorifError(f"a pass over the rows of the curvature failed: {outcome.cause}")
            results[outcome.item[0]] = outcome.result
            self._progress.advance(outcome.result.rows)
        return sum((results[number] for number, _ in numbered), start=NO_ROWS)
