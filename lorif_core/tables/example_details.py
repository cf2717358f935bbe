"""Where examples come from and what they say: the descriptive columns of many examples by id.

One pass over the ids finds where they lie, then only their rows are read: a filter on ids would pass over the
table once for every few hundred of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lorif_core.tables.datasets import Tables, store_told
from lorif_core.tables.schema import CODE_COLUMNS
from lorif_core.tables.store import Store

_IDS_PER_BATCH = 8192


class Details:
    """Descriptive columns (all but the code's) of examples of one version of `factors`.

    Holds the place of each example that was asked for, nothing else.

    Args:
        store: the index.
        version: of `factors`.
        example_ids: of all that will be looked up.
    """

    def __init__(self, store: Store, version: int, example_ids: Iterable[str]) -> None:
        self._tables, self._version = Tables(store.uri, store.storage), version
        self._places = self._find(set(example_ids))

    def _find(self, wanted: set[str]) -> dict[str, int]:
        places: dict[str, int] = {}
        first = 0
        for batch in self._tables.scan(
            "factors", self._version, columns=["example_id"], batch_size=_IDS_PER_BATCH
        ):
            ids = batch.column("example_id").to_pylist()
            places.update((name, first + row) for row, name in enumerate(ids) if name in wanted)
            first += len(ids)
        return places

    def of(self, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The columns of some of the examples, by id."""
        places = sorted({self._places[name] for name in example_ids})
        dataset = self._tables.require("factors", self._version)
        columns = [name for name in dataset.schema.names if name not in CODE_COLUMNS]
        with store_told(self._tables.uri):
            rows = dataset.take(places, columns=columns).to_pylist()
        return {row["example_id"]: row for row in rows}
