"""Seconds of the commands on real text: `lorif build` over wikitext, then `lorif query` with cold and warm cache.

    python -m benchmarks.wikitext [--sequences 4000 --layers 4 --width 256 --out FILE]

The cold query runs after the files of index and checkpoint were dropped from the page cache; libraries remain in
it. The warm time is the median of the later queries. Another process measures the steps of a warm query.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.laps import Laps
from benchmarks.run_record import write_result

_DEFAULT_TEXT = Path("../shared/data/wikitext-2/valid.txt")  # as in workload, which would import torch here
_QUERY = "The European lobster lives in the eastern Atlantic Ocean and is caught using lobster pots ."
_POSITIONS = 128
_QUERIES = 4
_TOP_K = 10


def main() -> None:
    arguments = gpt2_parser(__doc__, sequences=4000).parse_args()
    with tempfile.TemporaryDirectory(prefix="lorif-wikitext-") as name:
        folder = Path(name)
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        config, index = write_config(folder), folder / "index"
        build_seconds, built = lorif("build", "-c", str(config))
        drop_from_cache(folder)
        walls = [lorif("query", str(index), "--text", _QUERY, "--top-k", str(_TOP_K))[0] for _ in range(_QUERIES)]
        split = in_new_process(split_query, str(index), time.time())
    result = {
        "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}",
        "rows": built["rows"],
        "tokens": built["tokens"],
        "build": {"command": build_seconds, **rounded(built["timings"])},
        "query": {"cold": walls[0], "warm": round(statistics.median(walls[1:]), 2)},
        "warm_query_split": rounded(split),
    }
    print_result(result)
    if arguments.out:
        write_result(arguments.out, result)


def gpt2_parser(
    description: str | None, sequences: int, layers: int = 4, width: int = 256
) -> argparse.ArgumentParser:
    """A parser of the text, the number of sequences, the size of the GPT-2 and the file of the result."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=_DEFAULT_TEXT)
    parser.add_argument("--sequences", type=int, default=sequences)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--out", type=Path)
    return parser


def in_new_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a new interpreter, without large libraries because this module imports none."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def prepare(text: Path, folder: Path, sequences: int, layers: int, width: int) -> None:
    """Write the corpus and a randomly initialised GPT-2 with its tokenizer."""
    from benchmarks.workload import load_paragraphs, make_model, train_tokenizer, write_corpus

    paragraphs = load_paragraphs(text)
    train_tokenizer(paragraphs).save_pretrained(folder / "model")
    make_model(layers, width, _POSITIONS).save_pretrained(folder / "model")
    write_corpus(paragraphs, folder / "corpus.jsonl", sequences)


def write_config(folder: Path, **keys: str) -> Path:
    """Write a CONFIG with these keys that leaves everything else at its default."""
    config = {
        **keys,
        "index": str(folder / "index"),
        "model": {"path": str(folder / "model")},
        "corpus": {"uri": str(folder / "corpus.jsonl"), "id": "id", "max_length": _POSITIONS},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def lorif(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Run a command as a user would; return its wall seconds and the JSON of its last line."""
    command = [str(Path(sys.executable).with_name("lorif")), *arguments, "--json"]
    started = time.perf_counter()
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return round(time.perf_counter() - started, 2), json.loads(completed.stdout.splitlines()[-1])


def drop_from_cache(folder: Path) -> None:
    """Drop the files below a folder from the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def split_query(index_uri: str, launched: float) -> dict[str, float]:
    """Seconds of the consecutive steps of `lorif query`."""
    laps = Laps(launched)
    from lorif_core.search.index import open_index

    laps.end("import")
    index = open_index(index_uri)
    index.encoder()
    laps.end("open index, load model")
    folded = index.fold(index.encode([_QUERY]))
    laps.end("gradient, fold")
    (top,) = index.top_k_folded(folded, _TOP_K)
    laps.end("scan")
    hits = [hit.example_id for hit in (*top.proponents, *top.opponents)]
    index.store.rows.details(index.generation.factors_version, hits)
    laps.end("texts of hits")
    return laps.seconds


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in seconds.items()}


def print_result(result: dict[str, Any]) -> None:
    print(f"{result['model']}: {result['rows']} rows, {result['tokens']} tokens")
    for title in ("build", "query", "warm_query_split"):
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result[title].items())
        print(f"{title.replace('_', ' ')}: {steps}")


if __name__ == "__main__":
    main()
