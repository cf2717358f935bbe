"""What an index holds, for comparing two of them."""

from lorif_core.config import Config
from lorif_core.tables.store import Store


def stored_rows(config: Config, version: int | None = None) -> dict[str, bytes]:
    """example_id -> bytes of its codes and scales; an id that is there twice is an error."""
    store = Store(config.index, config.storage)
    found: dict[str, bytes] = {}
    for block in store.rows.scan(version or store.rows.version(), 500):
        for row, example_id in enumerate(block.example_ids):
            assert example_id not in found, f"{example_id} is stored twice"
            found[example_id] = block.codes[row].numpy().tobytes() + block.scales[row].numpy().tobytes()
    return found
