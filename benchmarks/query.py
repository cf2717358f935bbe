"""Rows per second of a scan by code and number of queries, next to the limits of memory and matrix products.

    python -m benchmarks.query [--out FILE --rounds 3 --seconds 1.0]

Codes are random and have the layer shapes of a GPT-2 with 4 layers of width 256, as in
benchmarks/results/quality-large, which has the LDS of the methods, and once those that `auto` tracks of
SmolLM2-135M. In memory, each code is searched with `Search`;
a plain sum over the same bytes and the method of the paper, which projects every row onto V_r, are measured too.
From disk, `store.rows.scan` feeds the same search; factors are also searched in two stages, with term sketches in
memory and candidates from disk. All measurements take turns in every round; ratios are medians over rounds.
`share_of_gemm` relates to products in float32, even if a prefilter multiplies in another dtype.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.run_record import write_result
from lorif_core.corpus.tokenise import Example
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.prefilter import prefilter_kind
from lorif_core.search.resident import ROW_ADDRESS
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.top_rows import PreparedQueries, Search, prepare_queries
from lorif_core.search.two_stage import StoredRows, read_two_stage
from lorif_core.spec import (
    CodeSpec,
    IndexSpec,
    LayerSpec,
    ProjectionSpec,
    ShardRef,
    TokenSpec,
    folded_sizes,
)
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.datasets import Tables
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store

_WIDTH, _LAYERS, _TOKENS = 256, 4, 128
_QUERIES = (1, 8, 64, 512)
_TOP_K = 10
_PAPER_RANK = 64
_RAM_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Method:
    """A code, the folded or projected shapes of its layers, and numbers of rows and of queries."""

    name: str
    sides: tuple[tuple[int, int], ...]
    code: CodeSpec
    memory_rows: int
    disk_rows: int
    queries: tuple[int, ...] = _QUERIES

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers; their features do not matter for a scan."""
        return tuple(LayerSpec(f"layer{n}", d1, d2, d1, d2) for n, (d1, d2) in enumerate(self.sides))


def _divided(factor: int) -> tuple[tuple[int, int], ...]:
    """All layers of the GPT-2, both sides divided by a factor."""
    sizes = [(_WIDTH, 3 * _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH)] * _LAYERS
    return tuple((rows // factor, columns // factor) for rows, columns in sizes)


def _folded(fold: int | None) -> tuple[tuple[int, int], ...]:
    """The MLPs of the GPT-2 under a fold."""
    sizes = [(_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH)] * _LAYERS
    return tuple(folded_sizes(inner, outer, fold, None) for inner, outer in sizes)


_SMOLLM2 = (folded_sizes(1536, 576, None, None),) * 15
LOGRA = Method("LoGRA: dense float16, f 4", _divided(4), CodeSpec("dense", 1, "float16"), 4096, 4096)
METHODS = (
    Method("compact (MLPs, cut 4)", _folded(None), CodeSpec("cut", 4, "sign"), 16384, 65536),
    Method("balanced (MLPs, cut 8)", _folded(None), CodeSpec("cut", 8, "sign"), 16384, 65536),
    Method("quality (MLPs, dense signs, fold 2)", _folded(2), CodeSpec("dense", 1, "sign"), 8192, 8192),
    Method("version 1 balanced (all layers, cut 4, f 2)", _divided(2), CodeSpec("cut", 4, "sign"), 16384, 65536),
    Method("balanced, SmolLM2-135M (15 layers, cut 8)", _SMOLLM2, CodeSpec("cut", 8, "sign"), 8192, 16384, (1, 8)),
    Method("rank 1 float16, f 4", _divided(4), CodeSpec("rank", 1, "float16"), 16384, 32768),
    LOGRA,
)


def random_rows(layout: CodeLayout, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes in the stored dtype, and scales."""
    rng = np.random.default_rng(seed)
    codes: np.ndarray
    if layout.code.dtype == "float16":
        codes = rng.standard_normal((rows, layout.stored_width), dtype=np.float32).astype(np.float16)
    else:
        codes = rng.integers(0, 256, (rows, layout.stored_width), dtype=np.uint8)
    return codes, rng.random((rows, layout.scales), dtype=np.float32) + 0.5


def random_queries(layout: CodeLayout, count: int) -> FoldedQueries:
    """Queries with one direction per token; 32 directions have .92 of the energy, as in real gradients."""
    rng = torch.Generator().manual_seed(count)
    strengths = 0.96 ** torch.arange(_TOKENS)
    weights = []
    for slot in layout.slots:
        X, Y = (torch.randn(count, size, _TOKENS, generator=rng) for size in (slot.layer.d1, slot.layer.d2))
        weights.append(((X * strengths) @ Y.mT).flatten(1))
    return FoldedQueries(tuple(weights))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Rows per second of work that returns its number of rows, repeated for at least so many seconds."""
    started, rows = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not rows:
        rows += work()
    return rows / passed if passed else 0.0


class InMemory:
    """Random rows of a method in memory, and the measured operations on them."""

    def __init__(self, method: Method) -> None:
        self.layout = CodeLayout(method.layers, method.code)
        codes, scales = random_rows(self.layout, method.memory_rows, 0)
        self.codes, self.scales = torch.from_numpy(codes), torch.from_numpy(scales)
        self.ids = [f"x{row}" for row in range(method.memory_rows)]

    def search(self, folded: FoldedQueries, *, exact: bool = False) -> Callable[[], int]:
        """A search of one block at a time in the middle of a long scan.

        512 earlier rows have scores that are twice as large, because the tenth largest of 500,000 normal scores is
        twice the tenth largest of 512.
        """
        search = Search(self.layout, self.prepare(folded) if not exact else PreparedQueries(folded), _TOP_K)
        rows = min(len(self.ids), 512 if exact else 4096)
        cursor = iter(self._starts(rows))
        first = slice(0, 512)
        search.update(self.codes[first], 2.0 * self.scales[first], [f"before {name}" for name in self.ids[first]])

        def work() -> int:
            start = next(cursor)
            block = slice(start, start + rows)
            search.update(self.codes[block], self.scales[block], self.ids[block])
            return len(self.ids[block])

        return work

    def prepare(self, folded: FoldedQueries) -> PreparedQueries:
        """The queries, prepared for a search with a prefilter."""
        return prepare_queries(self.layout, folded, [(self.codes, self.scales)])

    def _starts(self, rows: int) -> Iterator[int]:
        while True:
            yield from range(0, max(len(self.ids) - rows, 0) + 1, rows)

    def paper(self, folded: FoldedQueries) -> Callable[[], int]:
        """The paper's query: decode rows, project them onto V_r and compare."""
        bases = [torch.randn(slot.layer.dim, _PAPER_RANK) for slot in self.layout.slots]
        targets = [weight_QD @ basis for weight_QD, basis in zip(folded.weights, bases, strict=True)]
        rows = slice(0, 64)

        def work() -> int:
            scores = torch.zeros(folded.count, 64)
            for number, (basis, target) in enumerate(zip(bases, targets, strict=True)):
                decoded = self.layout.decode(self.codes[rows], self.scales[rows], number)
                scores += target @ (decoded @ basis).T
            return 64

        return work


def plain_sum() -> Callable[[], int]:
    """A sum of float32 numbers, which counts a byte as a row."""
    numbers = torch.ones(_RAM_BYTES // 4)

    def work() -> int:
        numbers.sum()
        return _RAM_BYTES

    return work


def write_index(folder: Path, method: Method) -> tuple[Store, int]:
    """Write an index of random codes; return its store and the version of its rows."""
    layers = method.layers
    tokens = TokenSpec("t", "text", None, None, None, None, None, _TOKENS, False)
    spec = IndexSpec("c", "float32", layers, ProjectionSpec(), method.code, tokens, store_text=False)
    store = Store(str(folder / method.name.replace(" ", "-")))
    store.create(spec)
    layout, size = CodeLayout(layers, method.code), 1024
    for start in range(0, method.disk_rows, size):
        codes, scales = random_rows(layout, size, start)
        ids = np.zeros(1, np.int32)
        examples = [Example(f"x{start + row}", row, ids, ids, None, "h") for row in range(size)]
        shard = ShardRef("u", f"{start}", "e", 1, start, size)
        fragments = store.rows.write(iter([ShardRows(examples, np.zeros(size), codes, scales)]), shard, spec)
        receipt = Receipt(shard.key, tuple(fragments), size, size, size, (), 0.0)
        store.rows.commit_wave([receipt], store.rows.version())
    return store, store.rows.version()


def from_disk(store: Store, version: int, layout: CodeLayout, queries: PreparedQueries) -> Callable[[], int]:
    """A scan and search of all rows from disk."""

    def work() -> int:
        search, rows = Search(layout, queries, _TOP_K), 0
        for block in store.rows.scan(version, scan_rows(layout, 1.0)):
            search.update(block.codes, block.scales, block.example_ids)
            rows += len(block.example_ids)
        return rows

    return work


def in_two_stages(store: Store, version: int, layout: CodeLayout, folded: FoldedQueries) -> Callable[[], int]:
    """A two-stage search of all rows with term sketches in memory, which are read beforehand."""
    stored_rows = StoredRows(layout, Tables(store.uri, store.storage), version, None)
    blocks = store.rows.scan(version, scan_rows(layout, 1.0), extra=(ROW_ADDRESS,))
    rows, _ = store.rows.counts(version)
    two_stage = read_two_stage(stored_rows, rows, blocks, None)

    def work() -> int:
        two_stage.top_k(folded, _TOP_K, None, 1.0)
        return rows

    return work


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Rates of all operations, which take turns in every round."""
    works: dict[str, tuple[Callable[[], int], int]] = {"plain sum": (plain_sum(), 1)}
    with tempfile.TemporaryDirectory(prefix="lorif-query-") as name:
        for method in METHODS:
            memory = InMemory(method)
            layout, single = memory.layout, random_queries(memory.layout, 1)
            size = layout.bytes_per_example
            for count in method.queries:
                folded = random_queries(layout, count)
                works[f"{method.name} | memory | {count}"] = (memory.search(folded), size)
                if prefilter_kind(layout, count) is not None:
                    works[f"{method.name} | exact | {count}"] = (memory.search(folded, exact=True), size)
            if method.code.dtype == "float16" and method.code.kind == "rank":
                works[f"{method.name} | paper | 1"] = (memory.paper(single), size)
            store, version = write_index(Path(name), method)
            works[f"{method.name} | disk | 1"] = (from_disk(store, version, layout, memory.prepare(single)), size)
            if method.code.kind != "dense":
                two_stage = in_two_stages(store, version, layout, single)
                works[f"{method.name} | two-stage | 1"] = (two_stage, size)
        rates: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, (work, _) in works.items():
                rates[name].append(rate(work, seconds))
    logra = rates[f"{LOGRA.name} | disk | 1"]
    rows = {}
    for name, (_, size) in works.items():
        median = statistics.median(rates[name])
        rows[name] = {"rows_per_s": round(median, 1), "gb_per_s": round(median * size / 1e9, 3), "bytes": size}
        if name.endswith("disk | 1"):
            ratios = [own / other for own, other in zip(rates[name], logra, strict=True)]
            rows[name]["times_logra"] = round(statistics.median(ratios), 2)
        shares = [own * size / total for own, total in zip(rates[name], rates["plain sum"], strict=True)]
        rows[name]["share_of_plain_sum"] = round(statistics.median(shares), 4)
    peak = gemm(torch.float32)
    for method in METHODS:
        for count in method.queries:
            row = rows[f"{method.name} | memory | {count}"]
            gflop_per_row = 2e-9 * count * sum(layer.dim for layer in method.layers)
            row["share_of_gemm"] = round(row["rows_per_s"] * gflop_per_row / peak, 3)
    return {
        "threads": torch.get_num_threads(),
        "gemm_gflops": peak,
        "gemm_bfloat16_gflops": gemm(torch.bfloat16),
        "rounds": rounds,
        "rows": rows,
    }


def gemm(dtype: torch.dtype) -> float:
    """Measured peak of matrix products in GFLOP/s."""
    matrix = torch.randn(2048, 2048).to(dtype)

    def work() -> int:
        torch.mm(matrix, matrix)
        return 2 * 2048**3

    return round(rate(work, 1.0) / 1e9, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.seconds)
    for name, row in result["rows"].items():
        print(
            f"{name:60}{row['rows_per_s']:14,.0f} rows/s {row['gb_per_s']:8.3f} GB/s", row.get("times_logra", "")
        )
    print(f"GEMM {result['gemm_gflops']} GFLOP/s, {result['threads']} threads")
    if arguments.out:
        write_result(arguments.out, result)


if __name__ == "__main__":
    main()
