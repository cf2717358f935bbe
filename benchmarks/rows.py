"""A table of many rows: commits, manifests, opening, planning an update, `lorif status`, a scan, memory.

    python -m benchmarks.rows [--rows 1000000 5000000 20000000 --workers 2 --out FILE]

Workers write random codes of real shards (of parquet files without much text) through the real store, and the
driver joins and commits them as a build does. The table grows from one size to the next. Each size is measured in
new processes; memory is the peak of such a process above what its imports take. `growth` is how much faster than
the rows a figure has grown since the size before (1 is linear), and `extrapolated` goes on from the last two sizes
on a straight line.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from benchmarks.run_record import write_result
from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.shards import list_shards
from lorif_core.corpus.tokenise import Example
from lorif_core.free_memory import peak_memory
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import STORED_DTYPES
from lorif_core.lifecycle.manifest import compare, known_files
from lorif_core.lifecycle.waves import Waves
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, ShardRef, TokenSpec
from lorif_core.tables.blocks import scan_codes, scan_rows
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Part, generation_of, now
from lorif_core.tables.receipts import JoinedReceipt, Receipt, Receipts
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store

STORAGE = StorageConfig()
SPEC = IndexSpec(
    checkpoint="sha256:" + 64 * "0",
    model_dtype="float32",
    layers=(LayerSpec("a", 64, 64, 8, 8),),
    projection=ProjectionSpec("folded"),
    code=CodeSpec("dense", 1, "int8"),
    tokenisation=TokenSpec("none", "text", None, None, None, None, None, 512, False),
    store_text=False,
)
LAYOUT = CodeLayout(SPEC.layers, SPEC.code)
UNHELD = cast(Any, SimpleNamespace(confirm=lambda: None))  # nobody else writes here
_GROWING = (
    "fragments", "commit_seconds", "manifest_bytes_written", "manifest_bytes_stored", "inventory_seconds",
    "inventory_mib", "plan_seconds", "plan_mib", "status_seconds",
)  # fmt: skip
_EXTRAPOLATED_ROWS = 10**9
_ROWS_PER_FILE = 2**18
_UPDATE_SHARE = 0.001
_EXAMPLE_SHARDS_AHEAD = 8


def main() -> None:
    arguments = parse_arguments()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lorif-rows-", dir=arguments.folder) as name:
        folder = Path(name)
        build = Build(folder / "index", folder / "corpus", arguments.workers)
        for rows in arguments.rows:
            result = {"rows": rows, **build.grow(rows), **measure(folder)}
            results.append(result)
            print(json.dumps(result), flush=True)
    result = {
        "code_bytes": LAYOUT.bytes_per_example,
        "sizes": results,
        "growth": [growth(before, after) for before, after in pairwise(results)],
        "extrapolated": extrapolated(results[-2:], _EXTRAPOLATED_ROWS) if len(results) > 1 else {},
    }
    print(json.dumps({key: result[key] for key in ("growth", "extrapolated")}, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where the temporary index is; the default is that of the system"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """For each figure of `_GROWING`: its ratio over that of the rows."""
    rows = after["rows"] / before["rows"]
    return {"rows": after["rows"], **{name: round(after[name] / before[name] / rows, 3) for name in _GROWING}}


def extrapolated(sizes: list[dict[str, Any]], rows: int) -> dict[str, float]:
    """The figures of `_GROWING` at a number of rows, on the line through two sizes."""
    before, after = sizes
    share = (rows - after["rows"]) / (after["rows"] - before["rows"])
    return {"rows": rows, **{name: round(after[name] + share * (after[name] - before[name])) for name in _GROWING}}


@dataclass
class Build:
    """An index that grows; its corpus grows with it.

    Attributes:
        commits: (seconds, bytes of the manifest and the transaction) of every commit.
    """

    index: Path
    corpus: Path
    workers: int
    commits: list[tuple[float, int]] = field(default_factory=list)

    def grow(self, rows: int) -> dict[str, Any]:
        """Index the corpus until it has so many rows, and publish a generation."""
        write_corpus(self.corpus, rows)
        store = Store(str(self.index))
        store.create(SPEC)
        started = time.perf_counter()
        known = store.rows.inventory()
        shards = list_shards(CorpusConfig(uri=str(self.corpus)), STORAGE, known_files(known, [])).shards
        waves = Waves(store, UNHELD, SPEC.hash, known.version, len(known.keys))
        self._time_commits(store)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            self._index(pool, iter(shards), waves)
        waves.commit()
        publish(store)
        table = self.index / "factors.lance"
        return {
            "build_seconds": round(time.perf_counter() - started, 1),
            "fragments": len(store.rows.fragment_ids(store.rows.version())),
            "commits": len(self.commits),
            "commit_seconds": round(sum(seconds for seconds, _ in self.commits), 3),
            "last_commit_ms": round(1000 * self.commits[-1][0], 1),
            "manifest_bytes_written": sum(size for _, size in self.commits),
            "manifest_bytes_stored": folder_bytes(table / "_versions") + folder_bytes(table / "_transactions"),
            "bytes_per_row_beyond_codes": round(
                folder_bytes(table / "data") / rows - store.rows.code_bytes(store.rows.version()) / rows, 1
            ),
            "uncommitted_objects": len(Receipts(store.uri, STORAGE).all()),
        }

    def _index(self, pool: ProcessPoolExecutor, shards: Iterator[ShardRef], waves: Waves) -> None:
        """What `tasks.indexing` does with workers of Ray."""
        running: dict[Future[Any], tuple[Receipt, ...]] = {}
        is_left = True
        while running or is_left:
            while is_left and len(running) < _EXAMPLE_SHARDS_AHEAD * self.workers:
                shard = next(shards, None)
                is_left = shard is not None
                if shard is not None:
                    running[pool.submit(index_shard, self.index, shard)] = ()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                joined_from = running.pop(future)
                if joined_from:
                    waves.add_joined(joined_from, future.result())
                elif group := waves.add(future.result()):
                    running[pool.submit(join, self.index, group)] = group
            if not running and not is_left and (group := waves.rest()):
                running[pool.submit(join, self.index, group)] = group

    def _time_commits(self, store: Store) -> None:
        commit, table = store.rows.commit_wave, self.index / "factors.lance"

        def timed(*arguments: Any) -> int:
            started = time.perf_counter()
            version = commit(*arguments)
            seconds = time.perf_counter() - started
            newest = [newest_file(table / name) for name in ("_versions", "_transactions")]
            self.commits.append((seconds, sum(path.stat().st_size for path in newest)))
            return version

        cast(Any, store.rows).commit_wave = timed


def newest_file(folder: Path) -> Path:
    files = [path for path in folder.iterdir() if path.suffix in (".manifest", ".txn")]
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def write_corpus(folder: Path, rows: int) -> None:
    """Parquet files of short texts with so many rows in all; those that exist stay."""
    folder.mkdir(exist_ok=True)
    stored = sum(pq.read_metadata(path).num_rows for path in folder.iterdir())
    for first in range(stored, rows, _ROWS_PER_FILE):
        texts = pa.array([f"row {row}" for row in range(first, min(first + _ROWS_PER_FILE, rows))])
        pq.write_table(pa.table({"text": texts}), folder / f"part-{first:010d}.parquet", row_group_size=2**16)


@cache
def opened(index: Path) -> tuple[Store, Receipts]:
    return Store(str(index)), Receipts(str(index), STORAGE)


def index_shard(index: Path, shard: ShardRef) -> Receipt:
    """What a worker does, but with random codes."""
    store, receipts = opened(index)
    rng = np.random.default_rng(shard.start)
    examples = []
    for row in range(shard.start, shard.start + shard.rows):
        ids = np.zeros(20 + row % 400, np.int32)
        digest = xxhash.xxh3_128_hexdigest(f"{shard.name}{row}".encode())
        examples.append(Example(f"{shard.name}#{row}", row, ids, ids, None, digest))
    losses = (700 * rng.random(shard.rows)).astype(np.float32)
    codes = rng.integers(0, 255, (shard.rows, LAYOUT.stored_width)).astype(STORED_DTYPES[SPEC.code.dtype])
    rows = ShardRows(examples, losses, codes, rng.random((shard.rows, LAYOUT.scales), np.float32))
    tokens = sum(len(example.input_ids) for example in examples)
    fragments = store.rows.write(iter([rows]), shard, SPEC)
    receipt = Receipt(shard.key, tuple(fragments), shard.rows, tokens, tokens, (), 0.0)
    receipts.write(receipt, SPEC.hash)
    return receipt


def join(index: Path, group: tuple[Receipt, ...]) -> JoinedReceipt:
    store, receipts = opened(index)
    joined = store.rows.join(group)
    receipts.write(joined, SPEC.hash)
    return joined


def publish(store: Store) -> None:
    version = store.rows.version()
    part = Part(
        SPEC.to_json(), SPEC.checkpoint, "/model", None, "none", "none", "{}", False, *store.rows.counts(version)
    )
    number = len(store.generations()) + 1
    store.publish(
        generation_of(
            [part], generation=number, created_at=now(), factors_version=version, coverage_json="{}",
            curvature_version=store.curvatures.version(), skipped_json="[]", timings_json="{}",
        )
    )  # fmt: skip


def measure(folder: Path) -> dict[str, Any]:
    """Seconds and MiB of each step, each in a process of its own."""
    steps = {"open": open_index, "inventory": inventory, "plan": plan_update, "status": status, "scan": scan}
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    for name, step in steps.items():
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            seconds, mib = pool.submit(timed_step, step, folder).result()
        results[f"{name}_seconds"], results[f"{name}_mib"] = round(seconds, 3), round(mib)
    results["scan_gb_per_second"] = round(
        folder_bytes(folder / "index" / "factors.lance" / "data") / results["scan_seconds"] / 1e9, 2
    )
    return results


def timed_step(step: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds of a step, and the peak of the resident set during it above that before it, in MiB."""
    before = peak_mib()
    started = time.perf_counter()
    step(folder)
    return time.perf_counter() - started, peak_mib() - before


def peak_mib() -> float:
    return (peak_memory() or 0) / 2**20


def open_index(folder: Path) -> None:
    store = Store(str(folder / "index"))
    store.rows.fragment_ids(store.latest().factors_version)


def inventory(folder: Path) -> None:
    store = Store(str(folder / "index"))
    store.rows.inventory(store.latest().factors_version)


def plan_update(folder: Path) -> None:
    """What `make_update_plan` does with tables and corpus, of which a new file has 0.1 % of the rows."""
    store, corpus = Store(str(folder / "index")), folder / "corpus"
    base = store.latest()
    new = corpus / "update.parquet"
    rows = max(1, int(_UPDATE_SHARE * base.rows))
    pq.write_table(pa.table({"text": pa.array(["new"] * rows)}), new)
    stored = store.rows.inventory(base.factors_version)
    listing = list_shards(CorpusConfig(uri=str(corpus)), STORAGE, known_files(stored, []))
    changes = compare(stored, listing, remove_vanished=False)
    new.unlink()
    if sum(shard.rows for shard in changes.shards) != rows or changes.dropped_rows:
        raise RuntimeError(f"the plan of an update is wrong: {changes}")


def status(folder: Path) -> None:
    from flows.commands.maintenance import run_status

    run_status(str(folder / "index"), [])


def scan(folder: Path) -> None:
    """All codes, in the blocks of a search, without the comparison with checksums of a first scan."""
    store = Store(str(folder / "index"))
    version, rows = store.latest().factors_version, 0
    for block in scan_codes(Tables(store.uri, STORAGE), version, scan_rows(LAYOUT, 1.0), check=False):
        rows += len(block.example_ids)
    if rows != store.latest().rows:
        raise RuntimeError(f"the scan read {rows} rows")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
