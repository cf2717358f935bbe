"""Cost of comparing rows with their checksums while their codes are scanned from disk, for one query.

    python -m benchmarks.checksums [--out FILE --rounds 9]

The rows are those of `benchmarks.query`. Every round scans and searches them without and with the comparison, and
compares them in memory. Times are CPU times of one thread in the fastest round, so other processes matter little.
`share` is the time of the comparison divided by that of the scan without it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.query import METHODS, InMemory, Method, random_queries, write_index
from benchmarks.run_record import write_result
from lorif_core.search.top_rows import Search
from lorif_core.tables.blocks import scan_codes, scan_rows
from lorif_core.tables.checksums import CODE_GROUP, columns_of, damaged_rows
from lorif_core.tables.datasets import Tables

_TOP_K = 10
_ROWS = 16384


def measure(method: Method, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds per row of both scans, and of the comparison alone."""
    method = replace(method, disk_rows=min(method.disk_rows, _ROWS))
    memory = InMemory(method)
    layout, queries = memory.layout, memory.prepare(random_queries(memory.layout, 1))
    store, version = write_index(folder, method)
    tables, size = Tables(store.uri, store.storage), scan_rows(memory.layout, 1.0)

    def scan(check: bool) -> int:
        search, rows = Search(layout, queries, _TOP_K), 0
        for block in scan_codes(tables, version, size, check=check):
            search.update(block.codes, block.scales, block.example_ids)
            rows += len(block.example_ids)
        return rows

    columns = columns_of([CODE_GROUP], tables.require("factors", version).schema)
    batches = tables.read("factors", version, columns=columns).to_batches()

    def compare() -> int:
        return sum(batch.num_rows for batch in batches if not damaged_rows(batch, [CODE_GROUP]))

    seconds: dict[str, list[float]] = {"plain": [], "compared": [], "alone": []}
    for _ in range(rounds):
        for name, work in (("plain", lambda: scan(False)), ("compared", lambda: scan(True)), ("alone", compare)):
            seconds[name].append(seconds_per_row(work))
    fastest = {name: min(times) for name, times in seconds.items()}
    return {
        "bytes": layout.bytes_per_example,
        "plain_rows_per_s": round(1 / fastest["plain"]),
        "compared_rows_per_s": round(1 / fastest["compared"]),
        "share": round(fastest["alone"] / fastest["plain"], 3),
        "us_per_row": round(1e6 * fastest["alone"], 2),
    }


def seconds_per_row(work: Callable[[], int]) -> float:
    """CPU seconds of work divided by the number of rows that it returns."""
    started = time.process_time()
    rows = work()
    return (time.process_time() - started) / rows


def main() -> None:
    """Measure all codes, print one line each, and write JSON if --out is set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="lorif-checksums-") as folder:
        for method in METHODS[:-1]:
            rows[method.name] = measure(method, arguments.rounds, Path(folder))
            print(method.name, rows[method.name], flush=True)
    if arguments.out:
        write_result(arguments.out, {"threads": torch.get_num_threads(), "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
