"""Seconds of `lorif update` by 1 % of new data, as a constant plus a fraction of a full build.

    python -m benchmarks.update [--sequences 20000 --rounds 3 --layers 2 --width 128 --out FILE]

The constant is the time of an update by a single row: the start of processes, imports, Ray, Prefect and models.
Every round updates copies of the same index by one row and by 1 % of new rows in turn. All columns of the updated
rows are compared with those of a full build of the union in the same whitening. The method `default` has CONFIG's
defaults; `woodbury` also merges a curvature.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.laps import Laps
from benchmarks.run_record import write_result
from benchmarks.wikitext import gpt2_parser, in_new_process, lorif, rounded

_POSITIONS = 128
_NEW_SHARE = 0.01  # new rows over base rows
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "woodbury": {
        "projection": {"kind": "random", "factor": 4},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury", "rank": 256},
    },
}


def main() -> None:
    arguments = parse_arguments()
    results = {}
    for name in arguments.methods:
        with tempfile.TemporaryDirectory(prefix="lorif-update-") as folder:
            results[name] = Scenario(Path(folder), arguments, METHODS[name]).measure(arguments.rounds)
        print_result(name, results[name])
    if arguments.out:
        model = f"GPT-2, {arguments.layers} layers, width {arguments.width}, {_POSITIONS} tokens at most"
        write_result(arguments.out, {"model": model, "cores": os.cpu_count(), "methods": results})


def parse_arguments() -> argparse.Namespace:
    parser = gpt2_parser(__doc__, sequences=20_000, layers=2, width=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args()


class Scenario:
    """A corpus, a checkpoint and an index of the corpus; files not yet in the corpus are in the parent folder.

    Args:
        folder: an empty folder.
        arguments: the command line.
        method: further keys of CONFIG.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace, method: dict[str, Any]) -> None:
        self._folder, self._method = folder, method
        rows = {"base": arguments.sequences, "new": round(_NEW_SHARE * arguments.sequences), "one": 1}
        (folder / "corpus").mkdir()
        in_new_process(prepare, arguments.text, folder, rows, arguments.layers, arguments.width)
        self._add_to_corpus("base")

    def measure(self, rounds: int) -> dict[str, Any]:
        """Build, update, build the union, and compare the rows."""
        base_seconds, base = lorif("build", "-c", self._config("index"))
        seconds: dict[str, list[float]] = {"one": [], "new": []}
        stages: dict[str, list[dict[str, float]]] = {"one": [], "new": []}
        for number in range(rounds):
            for name in ("one", "new"):
                config = self._copy(f"{name}-{number}")
                self._add_to_corpus(name)
                wall, updated = lorif("update", "-c", config)
                self._take_from_corpus(name)
                seconds[name].append(wall)
                stages[name].append(updated["timings"])
        split_config = self._copy("split")
        self._add_to_corpus("one")
        split = in_new_process(split_update, split_config, time.time())
        self._take_from_corpus("one")
        self._add_to_corpus("new")
        in_new_process(start_in_whitening, str(self._folder / "index"), str(self._folder / "union"))
        union_seconds, union = lorif("build", "-c", self._config("union"))
        differing = in_new_process(differing_columns, str(self._folder / "new-0"), str(self._folder / "union"))
        constant, update = (statistics.median(seconds[name]) for name in ("one", "new"))
        return {
            "rows": base["rows"],
            "rows_new": union["rows"] - base["rows"],
            "tokens": union["tokens"],
            "build_seconds": base_seconds,
            "build_of_union_seconds": union_seconds,
            "update_seconds": round(update, 2),
            "constant_seconds": round(constant, 2),
            "fraction_of_build": round((update - constant) / union_seconds, 4),
            "columns_that_differ_from_build_of_union": differing,
            "stages": {
                "build": rounded(base["timings"]),
                **{name: rounded(medians(timings)) for name, timings in stages.items()},
            },
            "constant_split": rounded(split),
            "all_seconds": seconds,
        }

    def _config(self, index: str) -> str:
        config = {
            "index": str(self._folder / index),
            "model": {"path": str(self._folder / "model")},
            "corpus": {"uri": str(self._folder / "corpus"), "id": "id", "max_length": _POSITIONS},
            **self._method,
        }
        path = self._folder / f"{index}.json"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return str(path)

    def _copy(self, name: str) -> str:
        shutil.copytree(self._folder / "index", self._folder / name)
        return self._config(name)

    def _add_to_corpus(self, name: str) -> None:
        (self._folder / f"{name}.jsonl").rename(self._folder / "corpus" / f"{name}.jsonl")

    def _take_from_corpus(self, name: str) -> None:
        (self._folder / "corpus" / f"{name}.jsonl").rename(self._folder / f"{name}.jsonl")


def prepare(text: Path, folder: Path, rows: dict[str, int], layers: int, width: int) -> None:
    """Write a randomly initialised GPT-2 with its tokenizer, and one file of distinct rows per name."""
    from benchmarks.workload import load_paragraphs, make_model, train_tokenizer, write_corpus

    paragraphs = load_paragraphs(text)
    train_tokenizer(paragraphs).save_pretrained(folder / "model")
    make_model(layers, width, _POSITIONS).save_pretrained(folder / "model")
    write_corpus(paragraphs, folder / "all.jsonl", sum(rows.values()))
    lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, count in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
        lines = lines[count:]


def medians(timings: list[dict[str, float]]) -> dict[str, float]:
    """The median seconds of every stage."""
    return {stage: statistics.median(seconds[stage] for seconds in timings) for stage in timings[0]}


def start_in_whitening(index: str, other: str) -> None:
    """Create another index with the whitening of an index: codes of different whitenings cannot be equal."""
    from lorif_core.tables.store import Store

    spec = Store(index).rows.spec()
    assert spec is not None
    if spec.projection.whitening is not None:
        shutil.copytree(f"{index}/whitening.lance", f"{other}/whitening.lance")
    Store(other).create(spec)


def differing_columns(updated: str, built: str) -> list[str]:
    """Columns that are not byte-identical between the newest generations, with rows sorted by id."""
    import lancedb

    from lorif_core.tables.store import Store

    tables = []
    for uri in (updated, built):
        table = lancedb.connect(uri).open_table("factors")
        table.checkout(Store(uri).latest().factors_version)
        tables.append(table.to_arrow().sort_by("example_id").combine_chunks())
    first, second = tables
    if first.num_rows != second.num_rows or first.column_names != second.column_names:
        return ["number of rows or columns"]
    return [name for name in first.column_names if not first[name].equals(second[name])]


def split_update(config: str, launched: float) -> dict[str, float]:
    """Seconds of the consecutive steps of `lorif update`."""
    laps = Laps(launched)
    from tasks.environment import prepare_run

    prepare_run("local")
    from prefect import flow

    from flows.update import update
    from lorif_core.config_file import load_config

    settings = load_config(config)
    laps.end("import")
    from tasks.cluster import cluster

    with cluster(settings.compute):
        laps.end("start Ray")
        flow(_nothing, name="nothing")()
        laps.end("start Prefect's server")
        generation = update(settings)
        laps.end("plan, publish")
        for stage, spent in generation.timings.items():
            laps.seconds[stage] = spent
            laps.seconds["plan, publish"] -= spent
    return laps.seconds


def _nothing() -> None:
    """A flow without work, whose run starts Prefect's server."""


def print_result(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name}: build of {result['rows']} rows {result['build_of_union_seconds']} s; update by "
        f"{result['rows_new']} rows {result['update_seconds']} s = {result['fraction_of_build']:.1%} of the build "
        f"+ {result['constant_seconds']} s; columns that differ: "
        f"{', '.join(result['columns_that_differ_from_build_of_union']) or 'none'}"
    )
    for title, stages in (*result["stages"].items(), ("constant", result["constant_split"])):
        print(f"  {title}: {', '.join(f'{stage} {seconds:.2f} s' for stage, seconds in stages.items())}")


if __name__ == "__main__":
    main()
