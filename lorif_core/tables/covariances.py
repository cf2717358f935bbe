"""The table `whitening`: the covariances that projections are whitened with, named by their digest."""

from collections.abc import Sequence

from lorif_core.errors import LorifError
from lorif_core.gradients.whitening import Covariances
from lorif_core.spec import IndexSpec, LayerSpec
from lorif_core.tables.datasets import Tables, quoted
from lorif_core.tables.schema import (
    WHITENING_SCHEMA,
    whitening_batches,
    whitening_of,
)


class CovarianceTable:
    """Covariances by name.

    Args:
        tables: of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def write(self, covariances: Covariances, layers: Sequence[LayerSpec], spec: IndexSpec | None = None) -> None:
        """Keep covariances; their digest names them.

        Args:
            covariances: in the projected space.
            layers: whose they are.
            spec: of the rows that are whitened with them; None for a newer metric.
        """
        self._tables.create("whitening", WHITENING_SCHEMA)
        if covariances.digest() in self.specs():
            return
        since = int(self._tables.require("whitening").version)
        rows = whitening_batches(covariances, layers, None if spec is None else spec.hash)
        fragments = self._tables.write("whitening", rows, WHITENING_SCHEMA)
        self._tables.append("whitening", {covariances.digest(): fragments}, since)

    def read(self, name: str | None) -> Covariances | None:
        """The covariances of that name; None for None, which is a random projection.

        Raises:
            LorifError: they are not there.
        """
        if name is None:
            return None
        found = whitening_of(self._tables.read("whitening", filter=f"whitening = '{quoted(name)}'"))
        if not found.sums or found.digest() != name:
            raise LorifError(
                f"the index {self._tables.uri} lacks the whitening {name}, or it is damaged; rebuild it"
            )
        return found

    def specs(self) -> dict[str, str | None]:
        """Names of all covariances that are kept, each with the hash of the spec that is whitened with it."""
        if self._tables.open("whitening") is None:
            return {}
        rows = self._tables.read("whitening", columns=["whitening", "spec"]).to_pylist()
        return {row["whitening"]: row["spec"] for row in rows}
