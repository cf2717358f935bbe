"""Listing JSON lines with ids: seconds and driver memory if files are read here, by workers, or not at all.

    python -m benchmarks.listing [--rows 5000000 --files 8 --out FILE]

Each listing is a process of its own; seconds have no imports in them, and memory is the peak of this process above
what imports take. `read here` uses no worker and keeps nothing. `first` starts a private Ray and keeps what its
workers found in an index, and `second` finds it there.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.rows import peak_mib
from benchmarks.run_record import write_result
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.shards import list_shards
from lorif_core.lifecycle.plan import list_corpus
from tasks.listing import list_on_workers

_LISTINGS = ("read here", "first", "second")
_CORPORA = {"with ids": "id", "without ids": None}
_TEXT = "The lobster was first described in the nineteenth century, in a book of which nobody knows the author. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorif-listing-") as scratch:
        folder = Path(scratch)
        size = write_corpus(folder / "corpus", arguments.rows, arguments.files)
        result: dict[str, Any] = {"rows": arguments.rows, "files": arguments.files, "bytes": size, "listings": {}}
        for label, column in _CORPORA.items():
            config = make_config(folder, label, column)
            for kind in _LISTINGS:
                result["listings"][f"{label}, {kind}"] = in_new_process(config, kind, arguments.rows)
            result["listings"][f"{label}, second"]["kept_bytes"] = kept_bytes(config)
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def write_corpus(folder: Path, rows: int, files: int) -> int:
    """Write rows with an id and a text of about 170 characters; returns their bytes."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as out:
            for row in range(number, rows, files):
                out.write(f'{{"id": "document-{row}", "text": "{_TEXT}{row % 1000} {_TEXT[:64]}"}}\n')
    return sum(path.stat().st_size for path in folder.iterdir())


def make_config(folder: Path, label: str, column: str | None) -> Config:
    ids = {} if column is None else {"id": column}
    corpus = {"uri": str(folder / "corpus"), **ids}
    return parse_config({"index": str(folder / label), "model": {"path": "none"}, "corpus": corpus})


def in_new_process(config: Config, kind: str, rows: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(timed_listing, config, kind, rows).result()


def timed_listing(config: Config, kind: str, rows: int) -> dict[str, Any]:
    """Seconds, CPU seconds of this process, and MiB of a listing."""
    before, cpu = peak_mib(), time.process_time()
    started = time.perf_counter()
    if kind == "read here":
        listing = list_shards(config.corpus, config.storage)
    else:
        listing = list_corpus(config, on_workers=list_on_workers(config))
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    assert sum(shard.rows for shard in listing.shards) == rows
    return {
        "seconds": round(seconds, 2),
        "driver_cpu_seconds": round(used, 2),
        "driver_mib": round(peak_mib() - before),
    }


def kept_bytes(config: Config) -> int:
    return sum(path.stat().st_size for path in (Path(config.index) / "_lorif" / "listing").iterdir())


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    main()
