"""The table `curvature`: the eigenpairs of every fitted layer."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lorif_core.curvature.woodbury import LayerCurvature, used_rank
from lorif_core.tables.checksums import CHECKSUM, LAST_COMPONENT, damaged, differing_rows, require_columns
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.schema import (
    CURVATURE_SCHEMA,
    curvature_batches,
    layer_curvature,
)
from lorif_core.tables.sql import escape_sql


class CurvatureTable:
    """Fitted curvatures by id, layer by layer.

    Args:
        tables: tables of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def write(self, curvature_id: str, layers: dict[int, tuple[str, LayerCurvature]]) -> int:
        """Append fitted layers, given as number -> (name, fit). Returns the new version of `curvature`."""
        self._tables.create("curvature", CURVATURE_SCHEMA)
        since = self.version()
        fragments = self._tables.write("curvature", curvature_batches(curvature_id, layers), CURVATURE_SCHEMA)
        key = f"{curvature_id}/{','.join(map(str, layers))}"
        return int(self._tables.append("curvature", {key: fragments}, since).version)

    def version(self) -> int:
        """Newest version of `curvature`."""
        return int(self._tables.require("curvature").version)

    def layers(self, generation: Generation, part: Part) -> Iterator[tuple[int, LayerCurvature]]:
        """Yield (number, fit) of the layers of a part, one in memory at a time, with only components in use."""
        for index in range(len(part.index_spec.layers)):
            yield index, self.layer(generation, part, index, in_use=True)

    def layer(self, generation: Generation, part: Part, index: int, in_use: bool = False) -> LayerCurvature:
        """The fit of one layer of a part, by its number; with all components, or only those in use."""
        rank = used_rank(part.index_spec.layers[index].dim, part.curvature_spec)
        condition = f"curvature = '{escape_sql(part.curvature)}' AND layer_index = {index}"
        if in_use:
            condition += f" AND component < {rank}"
        table = self._tables.read("curvature", generation.curvature_version, filter=condition)
        require_columns(table, CURVATURE_SCHEMA, "curvature", self._tables.uri)
        table = table.sort_by("component")
        self._require_complete(table, index, rank if in_use else None)
        return layer_curvature(table, rank)

    def _require_complete(self, table: pa.Table, index: int, limit: int | None) -> None:
        """Raise DamagedIndexError unless these are all components of a layer, or the first `limit`, undamaged."""
        differing = differing_rows(table)
        has_last = differing == [table.num_rows - 1] and not differing_rows(
            table.slice(table.num_rows - 1), [LAST_COMPONENT]
        )
        if differing and not has_last:
            raise damaged(
                self._tables.uri, f"components of layer {index} in the table curvature differ from their checksums"
            )
        is_older = CHECKSUM not in table.column_names or table.column(CHECKSUM).null_count > 0
        is_complete = table.column("component").to_pylist() == list(range(table.num_rows))
        if not table.num_rows or not is_complete or not (is_older or has_last or table.num_rows == limit):
            raise damaged(self._tables.uri, f"the table curvature lacks components of layer {index}")

    def ids(self) -> set[str]:
        """Ids of all fits in the newest version of `curvature`, complete or not."""
        return set(self._tables.read("curvature", columns=["curvature"])["curvature"].to_pylist())

    def fitted_layers(self, curvature_id: str) -> set[int]:
        """Numbers of the layers that are stored under an id; a killed fit has stored only some."""
        condition = f"curvature = '{escape_sql(curvature_id)}'"
        table = self._tables.read("curvature", columns=["layer_index"], filter=condition)
        return set(table["layer_index"].to_pylist())

    def spectra(self, generation: Generation, part: Part) -> list[dict[str, Any]]:
        """Per component: layer, layer_index, component, sigma2, damping, trace; without the vectors."""
        columns = ["layer", "layer_index", "component", "sigma2", "damping", "trace"]
        condition = f"curvature = '{escape_sql(part.curvature)}'"
        table = self._tables.read("curvature", generation.curvature_version, columns=columns, filter=condition)
        return table.sort_by([("layer_index", "ascending"), ("component", "ascending")]).to_pylist()
