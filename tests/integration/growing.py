"""A corpus that grows, changes and shrinks: small files of rows of the session's corpus."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lorif_core.config import Config
from lorif_core.tables.store import Store


class Folder:
    """A corpus folder whose files are chosen rows of another file."""

    def __init__(self, folder: Path, rows_of: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._lines = rows_of.read_text().splitlines(keepends=True)

    @property
    def section(self) -> dict[str, str]:
        """The corpus section of a config for this folder."""
        return {"uri": str(self._folder)}

    def put(self, name: str, rows: Iterable[int], swap: tuple[str, str] = ("", "")) -> None:
        """Write a file of some rows, and replace the first word of `swap` by the second."""
        text = "".join(self._lines[row] for row in rows)
        (self._folder / f"{name}.jsonl").write_text(text.replace(*swap) if swap[0] else text)

    def drop(self, name: str) -> None:
        """Remove a file."""
        (self._folder / f"{name}.jsonl").unlink()

    def rename(self, name: str, other: str) -> None:
        """Give a file another name."""
        (self._folder / f"{name}.jsonl").rename(self._folder / f"{other}.jsonl")


def codes_of(config: Config) -> dict[str, tuple[bytes, bytes]]:
    """example_id -> (codes, scales) of the newest generation; fails if an id occurs twice."""
    store = Store(config.index, config.storage)
    rows: dict[str, tuple[bytes, bytes]] = {}
    for block in store.rows.scan(store.latest().factors_version, 500):
        for row, example_id in enumerate(block.example_ids):
            assert example_id not in rows, f"{example_id} is stored twice"
            rows[example_id] = (block.codes[row].numpy().tobytes(), block.scales[row].numpy().tobytes())
    return rows


def metadata_of(config: Config) -> dict[str, tuple[object, ...]]:
    """example_id -> descriptive columns, in the newest generation."""
    store = Store(config.index, config.storage)
    columns = ["example_id", "shard", "row", "tokens", "content_hash", "text"]
    batches = store.rows.metadata(store.latest().factors_version, columns)
    rows = (row for batch in batches for row in batch.to_pylist())
    return {row["example_id"]: tuple(row[name] for name in columns) for row in rows}


def scores_of(config: Config, queries: list[object]) -> dict[str, np.ndarray]:
    """example_id -> scores of the newest generation."""
    import lorif_core as lc

    ids, scores = lc.open_index(config.index, config.storage).scores(queries)  # type: ignore[arg-type]
    return dict(zip(ids, scores.T, strict=True))
