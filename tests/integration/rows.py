"""The rows of an index, to compare two indexes."""

from lorif_core.config import Config
from lorif_core.tables.store import Store


def stored_rows(config: Config, version: int | None = None) -> dict[str, bytes]:
    """example_id -> bytes of its codes and scales; fails if an id occurs twice."""
    store = Store(config.index, config.storage)
    rows: dict[str, bytes] = {}
    for block in store.rows.scan(version or store.rows.version(), 500):
        for row, example_id in enumerate(block.example_ids):
            assert example_id not in rows, f"{example_id} is stored twice"
            rows[example_id] = block.codes[row].numpy().tobytes() + block.scales[row].numpy().tobytes()
    return rows
