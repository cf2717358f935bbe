"""Peak memory of indexing, of the curvature fit and of a query, over N and over 2N sequences: it must not grow.

    python -m benchmarks.memory [--sequences 25000 --text FILE --out FILE]

Every stage runs in a new process, which reports its peak resident set before its work (libraries and model are
loaded) and after it. Codes are dense, so that the table is large: a stage with all rows in memory would grow as
much as the table. The default preset is indexed too, with its calibration. Processes have one thread and one
malloc arena, because the freed memory that glibc retains in the arena of each thread varies between runs by as
much as a stage needs. N must be many shards of 512: with few shards, a stage ends before its read-ahead buffers
and malloc's free lists are full.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.run_record import write_result
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs, make_model, train_tokenizer, write_corpus
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.calibrate import ShardCalibrator, calibration_sample, sample_size
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import curvature_spec, make_plan, make_spec
from lorif_core.model.loading import load_skeleton
from lorif_core.search.index import open_index
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.generation import Part, generation_of, now
from lorif_core.tables.store import Store
from tasks.environment import quiet_libraries

_POSITIONS = 32
_CHARACTERS = 80
_LARGE_ROWS: dict[str, Any] = {
    "projection": {"kind": "random", "factor": 4},
    "code": {"kind": "dense"},
    "curvature": {"kind": "woodbury", "rank": 16},
}
_QUERIES = [
    f"The {thing} was first described in the nineteenth century ." for thing in ("lobster", "river", "song")
]

Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak resident set in MiB before and after a stage's work, and the seconds of the work."""

    loaded: float
    peak: float
    seconds: float

    @property
    def above(self) -> float:
        """MiB that the work needed in addition to libraries and model."""
        return self.peak - self.loaded


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    os.environ["MALLOC_ARENA_MAX"] = "1"
    sizes = (arguments.sequences, 2 * arguments.sequences)
    stages = {"index": index_corpus, "curvature": fit_curvature, "query": run_queries}
    with tempfile.TemporaryDirectory(prefix="lorif-memory-") as scratch:
        folder = Path(scratch)
        in_new_process(prepare, arguments.text, folder, sizes)
        dense = [make_config(folder, size, **_LARGE_ROWS) for size in sizes]
        default = [make_config(folder, size) for size in sizes]
        report = {name: measure(stage, dense) for name, stage in stages.items()}
        report["index, default preset"] = measure(index_corpus, default)
        tables = [table_mib(config) for config in dense]
    print_table(report, sizes, tables)
    if arguments.out:
        result = {"sequences": sizes, "table_mib": tables, "stages": report}
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=25000)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def in_new_process(function: Callable[..., Returned], *arguments: Any) -> Returned:
    """Call a function in a new interpreter.

    On Linux a child's peak starts at the parent's, so the parent only imports modules, as every child does.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(function, *arguments).result()


def prepare(text: Path, folder: Path, sizes: tuple[int, int]) -> None:
    """Write a small GPT-2 and a corpus of each size."""
    paragraphs = load_paragraphs(text)
    train_tokenizer(paragraphs).save_pretrained(folder / "model")
    make_model(layers=2, width=64, positions=_POSITIONS).save_pretrained(folder / "model")
    for size in sizes:
        write_corpus(paragraphs, folder / f"{size}.jsonl", size, _CHARACTERS)


def make_config(folder: Path, size: int, **keys: Any) -> Config:
    """A config of small blocks, so that the blocks in memory are small next to the table, with further keys."""
    return parse_config(
        {
            "index": str(folder / f"index-{'-'.join(keys)}-{size}"),
            "model": {"path": str(folder / "model")},
            "corpus": {"uri": str(folder / f"{size}.jsonl"), "id": "id", "max_length": _POSITIONS},
            "compute": {"memory_gb": 0.05, "tokens_per_batch": 2048},
            **keys,
        }
    )


def measure(stage: Callable[[Config], Peak], configs: list[Config]) -> dict[str, Any]:
    """Peaks of a stage over both sizes, each in a new process."""
    once, twice = (in_new_process(stage, config) for config in configs)
    return summarise(once, twice, [table_mib(config) for config in configs])


def index_corpus(config: Config) -> Peak:
    """List the corpus, calibrate if the projection is whitened, index all shards and commit each of them."""
    calibrator = ShardCalibrator(config, make_spec(config, load_skeleton(config.model, config.storage)))
    loaded, started = peak_mib(), time.perf_counter()
    plan = make_plan(config)
    store, spec = Store(config.index), plan.spec
    store.create(spec)
    if spec.projection.is_whitened:
        sample = calibration_sample(plan.shards, sample_size(spec.projection, plan.rows))
        covariances = calibrator.covariances(sample)
        spec = spec.with_whitening(store.whitenings.add(covariances, spec.layers, spec))
    indexer = ShardIndexer(config, spec, calibrator.loaded)
    for shard in plan.shards:
        receipt = indexer.index(shard)
        store.rows.commit_wave([receipt], store.rows.version())
    return Peak(loaded, peak_mib(), time.perf_counter() - started)


def fit_curvature(config: Config) -> Peak:
    """Fit all layers by scans of the table, and publish the generation."""
    store = Store(config.index)
    spec = store.rows.spec()
    if spec is None:
        raise RuntimeError(f"{config.index} has no indexed rows")
    layout, version = CodeLayout(spec.layers, spec.code), store.rows.version()
    loaded, started = peak_mib(), time.perf_counter()

    def scan(request: ScanRequest) -> ScanResult:
        blocks = store.rows.scan(version, scan_rows(layout, config.compute.memory_gb))
        return scan_blocks(((block.codes, block.scales) for block in blocks), layout, request)

    rows, tokens = store.rows.counts()
    dims = [layer.dim for layer in spec.layers]
    fitted = fit_layers(range(len(dims)), dims, rows, curvature_spec(config), scan)
    named = {index: (spec.layers[index].name, layer) for index, layer in fitted.items()}
    store.publish(
        generation_of(
            [Part(
                spec_json=spec.to_json(), checkpoint=spec.checkpoint, model_path=config.model.path,
                model_revision=None, curvature="benchmark", curvature_kind=config.curvature.kind,
                curvature_json="{}", factored_query=False, rows=rows, tokens=tokens,
            )],
            generation=1, created_at=now(), factors_version=version,
            curvature_version=store.curvatures.write("benchmark", named), coverage_json="{}", skipped_json="[]",
            timings_json="{}",
        )
    )  # fmt: skip
    return Peak(loaded, peak_mib(), time.perf_counter() - started)


def run_queries(config: Config) -> Peak:
    """Find the top ten of a few queries over the whole table."""
    index = open_index(config.index)
    index.encoder()  # loads the model
    loaded, started = peak_mib(), time.perf_counter()
    index.top_k(_QUERIES, 10)
    return Peak(loaded, peak_mib(), time.perf_counter() - started)


def table_mib(config: Config) -> float:
    """MiB of codes and scales on storage."""
    store = Store(config.index)
    return round(store.rows.code_bytes(store.rows.version()) / 2**20, 1)


def peak_mib() -> float:
    """Peak resident set of this process so far; Linux reports it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def summarise(once: Peak, twice: Peak, tables: list[float]) -> dict[str, Any]:
    """Both peaks, their ratio, and their growth as a share of the table's, which is 1 with all rows in memory."""
    return {
        "seconds": [round(once.seconds, 2), round(twice.seconds, 2)],
        "peak_mib": [round(once.peak, 1), round(twice.peak, 1)],
        "above_loaded_mib": [round(once.above, 1), round(twice.above, 1)],
        "ratio": round(twice.peak / once.peak, 3),
        "share_of_table_growth": round((twice.above - once.above) / (tables[1] - tables[0]), 3),
    }


def print_table(report: dict[str, dict[str, Any]], sizes: tuple[int, int], tables: list[float]) -> None:
    print(f"table of {sizes[0]} sequences {tables[0]:.0f} MiB, of {sizes[1]} sequences {tables[1]:.0f} MiB")
    print(f"{'':>22}{'peak MiB':>18}  {'ratio':>6}{'above loaded MiB':>18}  {'of table growth':>15}")
    for name, row in report.items():
        peaks, above = ("".join(f"{value:9.0f}" for value in row[key]) for key in ("peak_mib", "above_loaded_mib"))
        print(f"{name:>22}{peaks}  {row['ratio']:6.3f}{above}  {row['share_of_table_growth']:15.1%}")


if __name__ == "__main__":
    main()
