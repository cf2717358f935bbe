"""The table `whitening`: the covariances that whiten the projections, named by their digest."""

from collections.abc import Sequence

from lorif_core.gradients.whitening import Covariances
from lorif_core.spec import IndexSpec, LayerSpec
from lorif_core.tables.checksums import damaged, without_checksum
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import (
    WHITENING_SCHEMA,
    covariances_from_table,
    whitening_batches,
)
from lorif_core.tables.sql import escape_sql


class CovarianceTable:
    """Covariances by name.

    Args:
        tables: tables of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def write(self, covariances: Covariances, layers: Sequence[LayerSpec], spec: IndexSpec | None = None) -> None:
        """Store covariances under their digest; does nothing if they are stored already.

        Args:
            covariances: covariances in the projected space.
            layers: the layers that they belong to.
            spec: spec of the rows that they whiten; None for a newer metric.
        """
        self._tables.create("whitening", WHITENING_SCHEMA)
        if covariances.digest() in self.specs():
            return
        since = int(self._tables.require("whitening").version)
        rows = whitening_batches(covariances, layers, None if spec is None else spec.hash)
        fragments = self._tables.write("whitening", rows, WHITENING_SCHEMA)
        self._tables.append("whitening", {covariances.digest(): fragments}, since)

    def read(self, name: str | None) -> Covariances | None:
        """The covariances of that name; None if `name` is None, as it is for random projections.

        Raises:
            DamagedIndexError: the table does not contain them, or they are damaged.
        """
        if name is None:
            return None
        rows = self._tables.read("whitening", filter=f"whitening = '{escape_sql(name)}'")
        covariances = covariances_from_table(
            without_checksum(rows, WHITENING_SCHEMA, "whitening", self._tables.uri)
        )
        if not covariances.sums or covariances.digest() != name:
            raise damaged(self._tables.uri, f"the table whitening lacks {name}, or differs from this digest")
        return covariances

    def specs(self) -> dict[str, str | None]:
        """Names of all stored covariances, each with the hash of the spec whose rows it whitens, or None."""
        if self._tables.open("whitening") is None:
            return {}
        rows = self._tables.read("whitening", columns=["whitening", "spec"]).to_pylist()
        return {row["whitening"]: row["spec"] for row in rows}
