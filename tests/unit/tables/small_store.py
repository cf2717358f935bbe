"""Shards of four rows over two small layers, and stores of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, ShardRef, TokenSpec, parse_shard_key
from lorif_core.tables.generation import Generation, Part, generation_of, now
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store
from tests.models import make_example

SPEC = IndexSpec(
    checkpoint="sha256:0",
    model_dtype="float32",
    layers=(LayerSpec("a", 8, 8, 4, 4), LayerSpec("b", 8, 4, 4, 2)),
    projection=ProjectionSpec(factor=2),
    code=CodeSpec("rank", 1, "float16"),
    tokenisation=TokenSpec("none", None, None, None, "ids", None, None, 16, False),
)
WIDTH = 4 + 4 + 4 + 2
LEASE = cast(Any, SimpleNamespace(confirm=lambda: None))  # nobody else writes


def new_store(folder: Path) -> Store:
    store = Store(str(folder / "index"))
    store.create(SPEC)
    return store


def shard(number: int) -> ShardRef:
    return ShardRef("/corpus/x.jsonl", "x.jsonl", "tag", 100, number * 4, 4, None)


def rows(number: int) -> ShardRows:
    rng = np.random.default_rng(number)
    examples = [make_example([1, 2, 3], name=f"it's {number}/{i}") for i in range(4)]
    return ShardRows(
        examples,
        np.ones(4, np.float32),
        rng.standard_normal((4, WIDTH)).astype(np.float16),
        rng.random((4, 2), np.float32),
    )


def generation(store: Store, number: int, curvature: str = "c") -> Generation:
    version = store.rows.version()
    part = Part(
        SPEC.to_json(),
        SPEC.checkpoint,
        "/model",
        None,
        curvature,
        "woodbury",
        "{}",
        False,
        *store.rows.counts(version),
    )
    return generation_of(
        [part], generation=number, created_at=now(), factors_version=version,
        curvature_version=store.curvatures.version(), coverage_json="{}", skipped_json="[]", timings_json="{}",
    )  # fmt: skip


def finished(store: Store, number: int, skipped: tuple[tuple[str, str], ...] = ()) -> Receipt:
    """The receipt of a shard that a worker has written, and that is not committed yet."""
    fragments = store.rows.write(iter([rows(number)]), shard(number), SPEC)
    return Receipt(shard(number).key, tuple(fragments), 4, 12, 12, skipped, 0.0)


def commit(store: Store, *numbers: int) -> None:
    store.rows.commit_wave([finished(store, number) for number in numbers], store.rows.version())


def keep_only(store: Store, *numbers: int) -> None:
    store.rows.reconcile({(SPEC.hash, shard(number).key) for number in numbers})


def shard_numbers(store: Store) -> set[int]:
    """Numbers of the shards in the newest version."""
    return {parse_shard_key(key)[1] // 4 for _, key in store.rows.inventory().keys}
