"""The descriptive columns of many examples by id: where an example comes from, and its text.

One scan of the ids finds the row numbers; later reads fetch only these rows. A filter on ids would scan the table
once for every few hundred ids.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lorif_core.tables.checksums import CODE_COLUMNS, checked_descriptions
from lorif_core.tables.datasets import Tables, table_errors
from lorif_core.tables.store import Store

_IDS_PER_BATCH = 8192


class Details:
    """Descriptive columns (all except those of the code) of examples in one version of `factors`.

    Stores only the row number of every requested example.

    Args:
        store: the index.
        version: version of `factors`.
        example_ids: ids of all examples that `lookup` will be called with.
    """

    def __init__(self, store: Store, version: int, example_ids: Iterable[str]) -> None:
        self._tables, self._version = Tables(store.uri, store.storage), version
        self._row_numbers = self._find_rows(set(example_ids))

    def _find_rows(self, requested: set[str]) -> dict[str, int]:
        row_numbers: dict[str, int] = {}
        first = 0
        for batch in self._tables.scan(
            "factors", self._version, columns=["example_id"], batch_size=_IDS_PER_BATCH
        ):
            ids = batch.column("example_id").to_pylist()
            row_numbers.update((name, first + row) for row, name in enumerate(ids) if name in requested)
            first += len(ids)
        return row_numbers

    def lookup(self, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The columns of some of the examples, by id."""
        row_numbers = sorted({self._row_numbers[name] for name in example_ids})
        dataset = self._tables.require("factors", self._version)
        columns = [name for name in dataset.schema.names if name not in CODE_COLUMNS]
        with table_errors(self._tables.uri):
            table = dataset.take(row_numbers, columns=columns)
        rows = checked_descriptions(table, self._tables.uri).to_pylist()
        return {row["example_id"]: row for row in rows}
