"""Memory, scores and scaling of `lorif attribute` with many queries and rows; it is killed twice and resumed.

    python -m benchmarks.attribute [--queries 2000 --rows 200000 --out FILE]

The index is synthetic: random codes for the layers of a small GPT-2 are written with the store, as workers do.
Peak memory is measured for every process of the command. The memory of the same command for one query against 512
rows, which is that of libraries and model, is subtracted. The scores of a random block are compared with all
scores of its queries, computed in float64 from decoded rows. For the scaling, one worker and two workers, each
with one thread, take turns in scanning for the same queries. They scan these rows, which are so small that most of
the work is comparing scores, and rows of the default code for a larger model.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
import yaml

from benchmarks.memory import in_new_process
from benchmarks.processes import WatchedCommand
from benchmarks.query import random_rows
from benchmarks.run_record import write_result
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs, make_model, train_tokenizer
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.tokenise import Example
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.plan import make_spec
from lorif_core.model.loading import load_skeleton
from lorif_core.report.batch_run import BatchRun
from lorif_core.search.index import Index
from lorif_core.search.options import DEFAULT_OPTIONS
from lorif_core.search.source_sums import SourceSums
from lorif_core.search.top_k import TopK
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.generation import Part, generation_of, now
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store
from tasks.attribute import Share, check_attribution, scan, shares_of, start_scorers
from tasks.cluster import Resources, cluster
from tasks.dispatch import Workers
from tasks.environment import quiet_libraries

_ROWS_PER_SHARD = 512
_SHARDS_PER_WAVE = 64
_POSITIONS = 32
_TOP_K = 10
_KILL_AT = (0.3, 0.6)  # shares of the blocks
_ROUNDS = 3
_WIDE_ROWS = 16_384
_WIDE_GB = 2.0
# projection factor, code, (layers, width) of the model: small rows, and rows of the default preset's code
_KINDS: dict[str, tuple[int, dict[str, Any], tuple[int, int]]] = {
    "small": (8, {"kind": "rank", "rank": 1, "dtype": "float16"}, (2, 64)),
    "wide": (2, {"kind": "cut", "rank": 4, "dtype": "sign"}, (4, 256)),
}


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="lorif-attribute-") as scratch:
        folder = Path(scratch)
        in_new_process(prepare, arguments.text, folder, arguments.queries)
        large, small = (
            make_config(folder, rows, arguments.memory_gb) for rows in (arguments.rows, _ROWS_PER_SHARD)
        )
        wide = make_config(folder, _WIDE_ROWS, _WIDE_GB, "wide")
        bytes_per_row = in_new_process(synthesise, large, arguments.rows)
        in_new_process(synthesise, small, _ROWS_PER_SHARD)
        in_new_process(synthesise, wide, _WIDE_ROWS)
        loaded = measure(folder, small, "one", kills=())
        load = os.getloadavg()[0]
        killed = measure(folder, large, "all", kills=_KILL_AT)
        result = {
            "queries": arguments.queries,
            "rows": arguments.rows,
            "bytes_per_row": bytes_per_row,
            "memory_gb": arguments.memory_gb,
            "load_before": round(load, 1),
            **killed,
            "loaded_mib": loaded["peak_mib"],
            "beyond_loaded_mib": {
                role: round(peak - loaded["peak_mib"].get(role, 0.0)) for role, peak in killed["peak_mib"].items()
            },
            "beyond_loaded_together_mib": round(killed["together_mib"] - loaded["together_mib"]),
            "brute_force": in_new_process(compare, folder, large),
            "scaling": in_new_process(scale, folder, large),
            "scaling_default_code": in_new_process(scale, folder, wide),
        }
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--memory-gb", type=float, default=0.1, help="memory of a worker (default: 0.1)")
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def prepare(text: Path, folder: Path, queries: int) -> None:
    """Write a small GPT-2, a larger one, a file with all queries and a file with the first query."""
    paragraphs = load_paragraphs(text)
    for kind, (_, _, size) in _KINDS.items():
        train_tokenizer(paragraphs).save_pretrained(folder / kind)
        make_model(*size, positions=_POSITIONS).save_pretrained(folder / kind)
    lines = [
        json.dumps({"id": f"q{number}", "text": f"{number} {paragraphs[number % len(paragraphs)][:80]}"})
        for number in range(queries)
    ]
    for name, count in (("all", queries), ("one", 1)):
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")


def make_config(folder: Path, rows: int, memory_gb: float, kind: str = "small") -> Config:
    """The config for one of `_KINDS` without a curvature; it is also written to a file for the command."""
    factor, code, _ = _KINDS[kind]
    raw = {
        "index": str(folder / f"index-{kind}-{rows}"),
        "model": {"path": str(folder / kind)},
        "corpus": {"uri": str(folder / "all.jsonl"), "id": "id", "max_length": _POSITIONS},
        "projection": {"kind": "random", "factor": factor},
        "code": code,
        "curvature": {"kind": "none"},
        "compute": {"memory_gb": memory_gb, "workers": 2},
    }
    (folder / f"{kind}-{rows}.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return parse_config(raw)


def synthesise(config: Config, rows: int) -> int:
    """Write and commit an index of random codes shard by shard; return the bytes of a row."""
    spec = make_spec(config, load_skeleton(config.model, config.storage))
    store = Store(config.index)
    store.create(spec)
    receipts: list[Receipt] = []
    for first in range(0, rows, _ROWS_PER_SHARD):
        receipts.append(write_shard(store, spec, first, min(_ROWS_PER_SHARD, rows - first)))
        if len(receipts) == _SHARDS_PER_WAVE or first + _ROWS_PER_SHARD >= rows:
            store.rows.commit_wave(receipts, store.rows.version())
            receipts.clear()
    count, tokens = store.rows.counts()
    part = Part(
        spec_json=spec.to_json(), checkpoint=spec.checkpoint, model_path=config.model.path, model_revision=None,
        curvature="benchmark", curvature_kind="none", curvature_json="{}", factored_query=False, rows=count,
        tokens=tokens,
    )  # fmt: skip
    store.publish(
        generation_of(
            [part], generation=1, created_at=now(), factors_version=store.rows.version(),
            curvature_version=store.curvatures.version(), skipped_json="[]", timings_json="{}",
            coverage_json=json.dumps({"tracked": 1, "total": 1, "untracked": []}),
        )
    )  # fmt: skip
    return CodeLayout(spec.layers, spec.code).bytes_per_example


def write_shard(store: Store, spec: IndexSpec, first: int, count: int) -> Receipt:
    """Write random rows whose scales are as uneven as those of real gradients."""
    layout = CodeLayout(spec.layers, spec.code)
    codes, _ = random_rows(layout, count, first)
    scales = np.random.default_rng(first).lognormal(0.0, 1.0, (count, layout.scales)).astype(np.float32)
    ids = np.arange(4, dtype=np.int32)
    examples = [Example(f"x{first + row:07d}", first + row, ids, ids, None, "0" * 32) for row in range(count)]
    rows = ShardRows(examples, np.ones(count, np.float32), codes, scales)
    shard = ShardRef("/synthetic.jsonl", "synthetic.jsonl", "tag", 1, first, count, None)
    fragments = store.rows.write(iter([rows]), shard, spec)
    return Receipt(shard.key, tuple(fragments), count, 4 * count, 4 * count, (), 0.0)


def measure(folder: Path, config: Config, queries: str, kills: Sequence[float]) -> dict[str, Any]:
    """Run `lorif attribute`; kill it when each share of its blocks is answered, and start it again."""
    name, out = Path(config.index).name.removeprefix("index-"), folder / f"answers-{queries}"
    file, log = folder / f"{queries}.jsonl", folder / "log"
    command = [
        str(Path(sys.executable).parent / "lorif"), "attribute", "-c", str(folder / f"{name}.yaml"),
        "--queries", str(file), "--out", str(out), "--top-k", str(_TOP_K),
    ]  # fmt: skip
    blocks = len(check_attribution(config, str(file), str(out), _TOP_K).blocks)
    blocks_at_kills, seconds, runs = [], [], []
    for share in (*kills, None):
        started = time.perf_counter()
        runs.append(WatchedCommand(command, log))
        if share is None:
            code = runs[-1].wait()
            if code:
                raise RuntimeError(
                    f"lorif attribute exited with code {code}: {log.read_text(encoding='utf-8')[-2000:]}"
                )
        else:
            target = max(1, int(share * blocks))
            runs[-1].kill_when(lambda target=target: count_answered(out) >= target)  # type: ignore[misc]
            blocks_at_kills.append(count_answered(out))
        seconds.append(round(time.perf_counter() - started, 1))
    roles = sorted({role for run in runs for role in run.peaks})
    return {
        "blocks": blocks,
        "blocks_kept_at_kills": blocks_at_kills,
        "seconds": seconds,
        "peak_mib": {role: round(max(run.peaks.get(role, 0.0) for run in runs)) for role in roles},
        "together_mib": round(max(run.peak_of_sum for run in runs)),
    }


def count_answered(out: Path) -> int:
    """Number of blocks whose answers are stored."""
    return len(list((out / "_lorif" / "answered").glob("[!.]*.parquet")))


def compare(folder: Path, config: Config) -> dict[str, Any]:
    """Compare the answers of a random block with all scores of its queries, from decoded rows in float64."""
    torch.set_num_threads(2)
    block = random.Random(0).choice(
        check_attribution(config, str(folder / "all.jsonl"), str(folder / "no"), _TOP_K).blocks
    )
    store = Store(config.index)
    index = Index(store)
    (part,), (folded,) = index.parts, index.fold(index.encode(block.queries, config.model))
    ids: list[str] = []
    block_scores = []
    for rows in part.blocks():
        scores = torch.zeros(folded.count, len(rows.codes), dtype=torch.float64)
        for number, weight_QD in enumerate(folded.weights):
            decoded = part.layout.decode(rows.codes.double(), rows.scales.double(), number)
            scores += weight_QD.double() @ decoded.T
        ids += rows.example_ids
        block_scores.append(scores)
    query_ids = [query.query_id for query in block.queries]
    return compare_with_sort(np.concatenate(block_scores, axis=1), ids, query_ids, folder)


def compare_with_sort(scores_QN: np.ndarray, ids: list[str], queries: list[str], folder: Path) -> dict[str, Any]:
    """Compare the answers of some queries with both ends of a full sort.

    Raises:
        RuntimeError: scores differ by more than rounding.
    """
    table = pq.read_table(folder / "answers-all" / "scores.parquet", filters=[("query_id", "in", queries)])
    answers: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in table.to_pylist():
        answers.setdefault((row["query_id"], row["side"]), []).append((row["example_id"], row["score"]))
    same, worst = 0, 0.0
    for query, scores in zip(queries, scores_QN, strict=True):
        for side, sign in (("proponent", -1.0), ("opponent", 1.0)):
            order = np.argsort(sign * scores, kind="stable")[:_TOP_K]
            answer = answers[query, side]
            same += sum(name == ids[row] for (name, _), row in zip(answer, order.tolist(), strict=True))
            stored = np.array([score for _, score in answer])
            worst = max(worst, float(np.abs(stored / scores[order] - 1).max()))
    comparison = {
        "queries": len(queries),
        "hits": 2 * _TOP_K * len(queries),
        "same_example": same,
        "largest_relative_difference_of_scores": worst,
    }
    if worst > 1e-4:
        raise RuntimeError(f"the answers differ from those of brute force: {comparison}")
    return comparison


def scale(folder: Path, config: Config) -> dict[str, Any]:
    """Rows/s of one worker and of two workers in turn for a block of queries, after a first scan of the index."""
    torch.set_num_threads(1)
    run = check_attribution(config, str(folder / "all.jsonl"), str(folder / "no"), _TOP_K)
    index = Index(Store(config.index))
    queries = run.blocks[0].queries
    folded = index.fold(index.encode(queries, config.model))
    shares = shares_of(index)
    rates: dict[str, list[float]] = {"1": [], "2": []}
    with cluster(config.compute):
        prepared = ray.put(index.prepare(folded, config.compute.memory_gb))
        for round_ in range(_ROUNDS + 1):
            for workers, worker_rates in rates.items():
                resources = Resources(int(workers), 1, 0.0, int(workers))
                with start_scorers(config, run.generation, resources, len(shares)) as scorers:
                    warm_up = [TopK(_TOP_K) for _ in queries]
                    list(
                        scan(
                            scorers, shares[: 2 * int(workers)], prepared, warm_up, DEFAULT_OPTIONS, SourceSums(0)
                        )
                    )
                    seconds = time_scan(scorers, shares, prepared, run, len(queries))
                if round_:  # the first round reads the index
                    worker_rates.append(run.generation.rows / seconds)
    ratios = [double / single for single, double in zip(rates["1"], rates["2"], strict=True)]
    return {
        "queries": len(queries),
        "rows_per_second": {workers: [round(rate) for rate in per_round] for workers, per_round in rates.items()},
        "two_over_one": [round(ratio, 2) for ratio in ratios],
        "median": round(statistics.median(ratios), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def time_scan(
    scorers: Workers, shares: Sequence[Share], prepared: ray.ObjectRef, run: BatchRun, queries: int
) -> float:
    """Seconds of one scan by running workers."""
    best = [TopK(run.k) for _ in range(queries)]
    started = time.perf_counter()
    list(scan(scorers, shares, prepared, best, run.options, SourceSums(0)))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
