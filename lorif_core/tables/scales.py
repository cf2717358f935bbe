"""The table `scale`: the scales of Adam's metric, named by a digest of them.

All rows and queries of an index have the same scales, those of its first build or recording. The state of the
optimiser is not read again.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lorif_core.gradients.side_scales import SideScales
from lorif_core.gradients.whitening import SIDES, SideKey
from lorif_core.spec import LayerSpec, ProjectionSpec
from lorif_core.tables.checksums import damaged, with_checksum, without_checksum
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import SCALE_SCHEMA
from lorif_core.tables.sql import escape_sql


class ScaleTable:
    """Scales by name.

    Args:
        tables: tables of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def add(self, scales: SideScales, layers: Sequence[LayerSpec]) -> str:
        """Store the scales of all layers, if they are not stored; returns their name."""
        self._tables.create("scale", SCALE_SCHEMA)
        since = int(self._tables.require("scale").version)
        if scales.name not in self.names():
            rows = [
                {
                    "scales": scales.name, "layer": layers[layer].name, "layer_index": layer, "side": side,
                    "scale": values,
                }
                for (layer, side), values in sorted(scales.values.items())
            ]  # fmt: skip
            batch = pa.RecordBatch.from_pylist(rows, schema=pa.schema(list(SCALE_SCHEMA)[:-1]))
            fragments = self._tables.write("scale", iter([with_checksum(batch)]), SCALE_SCHEMA)
            self._tables.append("scale", {scales.name: fragments}, since)
        return scales.name

    def read(self, projection: ProjectionSpec) -> SideScales | None:
        """The scales of a projection; None if it has none.

        Raises:
            DamagedIndexError: the table does not contain them, or they are damaged.
        """
        return self.named(str(projection.scales)) if projection.is_adam else None

    def named(self, name: str) -> SideScales:
        """The scales of that name. Raises DamagedIndexError as `read`."""
        stored = self._tables.read("scale", filter=f"scales = '{escape_sql(name)}'")
        values: dict[SideKey, np.ndarray] = {
            (row["layer_index"], SIDES[SIDES.index(row["side"])]): np.array(row["scale"], np.float32)
            for row in without_checksum(stored, SCALE_SCHEMA, "scale", self._tables.uri).to_pylist()
        }
        scales = SideScales(values)
        if not values or scales.name != name:
            raise damaged(self._tables.uri, f"the table scale lacks {name}, or differs from this digest")
        return scales

    def names(self) -> set[str]:
        """Names of all stored scales."""
        if self._tables.open("scale") is None:
            return set()
        return set(self._tables.read("scale", columns=["scales"]).column("scales").to_pylist())
