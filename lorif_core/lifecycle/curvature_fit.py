"""A stored fit of a curvature: its id, its layers, and the groups of layers that fit into memory."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorif_core.config import ComputeConfig
from lorif_core.curvature.randomized_svd import layer_groups
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.store import Store


@dataclass(frozen=True, slots=True)
class Fit:
    """A curvature that is stored in the table `curvature`.

    Attributes:
        curvature: its id.
        version: version of the table.
        how: `none` if the settings have no curvature, `kept` if it did not change, `fitted` over all rows, or
            `merged` from the former one and new rows.
        left: rows that were taken out since the last fit over all rows.
        seconds: time of the fit.
        sampled: rows of older checkpoints that the curvature represents by a sample.
    """

    curvature: str
    version: int
    how: Literal["none", "kept", "fitted", "merged"]
    left: int
    seconds: float
    sampled: int = 0


def fit_id(*inputs: Any) -> str:
    """The id of a fit: 16 hex digits, a hash of its inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def missing_layers(store: Store, spec: IndexSpec, curvature_id: str) -> list[int]:
    """Layers that are not stored yet under an id."""
    return sorted(set(range(len(spec.layers))) - store.curvatures.fitted_layers(curvature_id))


def write_group(
    store: Store, spec: IndexSpec, curvature_id: str, group: dict[int, LayerCurvature], lease: Lease
) -> None:
    """Write fitted layers after confirming the lease."""
    lease.confirm()
    store.curvatures.write(
        curvature_id, {index: (spec.layers[index].name, layer) for index, layer in group.items()}
    )


def count_passes(settings: CurvatureSpec) -> int:
    """The number of passes over the rows that the fit of one group of layers takes."""
    return 1 + (settings.power_iterations if settings.kind == "woodbury" else 0)


def memory_groups(
    spec: IndexSpec, settings: CurvatureSpec, rows: int, compute: ComputeConfig, layers: Sequence[int]
) -> list[list[int]]:
    """The given layers, in groups that fit into a worker's memory."""
    groups = layer_groups([layer.dim for layer in spec.layers], rows, settings, compute.memory_gb)
    return [chosen for group in groups if (chosen := [layer for layer in group if layer in layers])]
