"""Throughput of `lorif build` on an object store, with and without latency added to every request.

    python -m benchmarks.latency [--latency 0.05 --sequences 4000 --rounds 3 --out FILE]

Corpus, checkpoint and index are in a moto server behind a proxy. Builds with and without latency take turns, each
into an index of its own; compared is the whole indexing stage: reading, computing, writing, receipts and commits.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.wikitext import in_new_process, lorif, prepare
from tasks.demo.object_store import MotoServer, upload_folder
from tasks.environment import environment

_BUCKET = "latency"
_POSITIONS = 128


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lorif-latency-") as name, MotoServer() as server:
        folder = Path(name)
        cache = {"LORIF_CACHE": str(folder / "cache")}
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        server.make_bucket(_BUCKET)
        upload_folder(server, folder, _BUCKET, "data")
        places = {"without": 0.0, "with": arguments.latency}
        found: dict[str, list[float]] = {place: [] for place in places}
        with environment({**server.environment(), **cache}):
            for number in range(arguments.rounds):
                for place, latency in places.items():
                    with proxy(server.url, latency) as endpoint:
                        config = write_config(folder, endpoint, f"{place}-{number}")
                        seconds, built = lorif("build", "-c", str(config))
                    found[place].append(built["tokens"] / built["timings"]["index"])
                    print(f"{place} latency: {found[place][-1]:,.0f} tokens/s, {seconds:.0f} s in all", flush=True)
    ratios = [slow / fast for slow, fast in zip(found["with"], found["without"], strict=True)]
    result = {
        "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}",
        "sequences": arguments.sequences,
        "latency_ms": arguments.latency * 1000,
        "tokens_per_second": {place: [round(rate) for rate in rates] for place, rates in found.items()},
        "throughput_kept": {
            "median": round(statistics.median(ratios), 3),
            "rounds": [round(r, 3) for r in ratios],
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/data/wikitext-2/valid.txt"))
    parser.add_argument("--latency", type=float, default=0.05, help="seconds added to every request")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@contextmanager
def proxy(upstream: str, latency: float) -> Iterator[str]:
    """A proxy in a process of its own, also where it adds nothing; its address."""
    command = [sys.executable, "-m", "tests.servers.proxy", upstream, "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def write_config(folder: Path, endpoint: str, index: str) -> Path:
    """Everything that need not be said is left at its default."""
    config: dict[str, Any] = {
        "index": f"s3://{_BUCKET}/{index}",
        "model": {"path": f"s3://{_BUCKET}/data/model"},
        "corpus": {"uri": f"s3://{_BUCKET}/data/corpus.jsonl", "id": "id", "max_length": _POSITIONS},
        "compute": {"workers": 1},
        "storage": {"endpoint": endpoint, "region": "us-east-1", "allow_http": True},
    }
    path = folder / f"{index}.json"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    main()
