"""The distributed fit: workers sum over their own fragments, the driver orthonormalises."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
from prefect import task

from lorif_core.config import ComputeConfig, Config
from lorif_core.curvature.randomized_svd import fit_layers, layer_groups
from lorif_core.curvature.scan import NO_ROWS, ScanRequest, ScanResult
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.errors import LorifError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.plan import BuildPlan, check_curvature
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.actors import CurvatureActor, start
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.indexing import IndexedRows
from tasks.progress import Progress
from tasks.retry import RETRIED


@dataclass(frozen=True, slots=True)
class Fit:
    """A curvature that is in the table.

    Attributes:
        curvature: its id.
        version: of the table.
        how: none was asked for, the one that was there stands, all rows were fitted, or it was merged.
        left: rows taken out since all rows were fitted.
        seconds: it took.
        sampled: rows of older checkpoints that it stands for, by a sample of them.
    """

    curvature: str
    version: int
    how: Literal["none", "kept", "fitted", "merged"]
    left: int
    seconds: float
    sampled: int = 0


@task(name="fit curvature", **RETRIED)
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

    The id names the rows and the settings, so a fit that was killed goes on with the layers that are missing.
    """
    started = time.perf_counter()
    curvature_id = name_of(spec.hash, rows.version, asdict(settings))
    if settings.kind != "none":
        missing = missing_layers(store, spec, curvature_id)
        with cluster(compute) as resources:
            for group in fit_distributed(store, compute, spec, settings, rows, missing, resources):
                write_group(store, spec, curvature_id, group, lease)
    how: Literal["none", "fitted"] = "none" if settings.kind == "none" else "fitted"
    return Fit(curvature_id, store.curvatures.version(), how, 0, time.perf_counter() - started)


def name_of(*what: Any) -> str:
    """16 hex digits that name a fit of what it was made from."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def missing_layers(store: Store, spec: IndexSpec, curvature_id: str) -> list[int]:
    """Layers that are not fitted yet under an id."""
    return sorted(set(range(len(spec.layers))) - store.curvatures.fitted_layers(curvature_id))


def write_group(
    store: Store, spec: IndexSpec, curvature_id: str, group: dict[int, LayerCurvature], lease: Lease
) -> None:
    """Write fitted layers while the lease is held."""
    lease.confirm()
    store.curvatures.write(
        curvature_id, {index: (spec.layers[index].name, layer) for index, layer in group.items()}
    )


def fit_distributed(
    store: Store,
    compute: ComputeConfig,
    spec: IndexSpec,
    settings: CurvatureSpec,
    rows: Inventory,
    layers: Sequence[int],
    resources: Resources,
) -> Iterator[dict[int, LayerCurvature]]:
    """Fit some layers, a memory-bounded group after another, over rows of one version of the factors."""
    dims = [layer.dim for layer in spec.layers]
    groups = groups_of(spec, settings, rows.rows, compute, layers)
    passes = len(groups) * passes_of(settings)
    with row_scanners(store, compute, spec, rows, resources, "fit curvature", passes) as scanners:
        for group in groups:
            yield fit_layers(group, dims, rows.rows, settings, scanners.scan)


def passes_of(settings: CurvatureSpec) -> int:
    """Passes over the rows that a fit of a group of layers takes."""
    return 1 + (settings.power_iterations if settings.kind == "woodbury" else 0)


def groups_of(
    spec: IndexSpec, settings: CurvatureSpec, rows: int, compute: ComputeConfig, layers: Sequence[int]
) -> list[list[int]]:
    """The layers that are asked for, in the groups that fit into a worker's memory."""
    groups = layer_groups([layer.dim for layer in spec.layers], rows, settings, compute.memory_gb)
    return [chosen for group in groups if (chosen := [layer for layer in group if layer in layers])]


def row_scanners(
    store: Store,
    compute: ComputeConfig,
    spec: IndexSpec,
    rows: Inventory,
    resources: Resources,
    what: str,
    passes: int,
    *,
    shares_cores: bool = False,
) -> "Scanners":
    """Workers that sum over the fragments of some rows.

    Args:
        store: the index.
        compute: memory of a worker.
        spec: of the rows.
        rows: inventory of them in one version of the factors.
        resources: of the cluster.
        what: shown as progress.
        passes: over the rows that are expected.
        shares_cores: they work only while others wait.
    """
    count = min(resources.workers, len(rows.fragments))
    parts = [rows.fragments[worker::count] for worker in range(count)]
    at_once = scan_rows(CodeLayout(spec.layers, spec.code), compute.memory_gb)
    text, version = spec.to_json(), rows.version

    def spawn() -> Any:
        return start(CurvatureActor, resources, store, text, version, at_once, shares_cores=shares_cores)

    return Scanners(spawn, parts, what, passes * rows.rows)


class Scanners:
    """Workers that sum over parts of some rows, for the length of a `with`.

    Args:
        spawn: starts an actor whose `scan` takes a request and a part.
        parts: of the rows, one a worker.
        what: shown as progress.
        rows: over all passes that are expected.
    """

    def __init__(self, spawn: Callable[[], Any], parts: Sequence[Sequence[Any]], what: str, rows: int) -> None:
        self._parts = parts
        self._workers = Workers(spawn, len(parts))
        self._progress = Progress(what, rows)

    def __enter__(self) -> "Scanners":
        self._workers.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._progress.__exit__(*raised)
        self._workers.__exit__(*raised)

    def scan(self, request: ScanRequest) -> ScanResult:
        """One pass over all parts; sums are added in the order of the parts, so that the result repeats."""
        shared = ray.put(request)
        found: dict[int, ScanResult] = {}
        numbered = list(enumerate(self._parts))
        outcomes = self._workers.run(numbered, lambda actor, part: actor.scan.remote(shared, part[1]), in_flight=1)
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise LorifError(f"a pass over the rows of the curvature failed: {outcome.cause}")
            found[outcome.item[0]] = outcome.result
            self._progress.advance(outcome.result.rows)
        return sum((found[number] for number, _ in numbered), start=NO_ROWS)
