"""Throughput of `lorif build` on an object store, with and without latency added to every request.

    python -m benchmarks.latency [--latency 0.05 --sequences 4000 --rounds 3 --out FILE]

Corpus, checkpoint and index are in a moto server behind a proxy. Builds with and without latency take turns, and
each build writes its own index. The measured stage is `index`: reading, computing, writing, receipts and commits.
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

from benchmarks.run_record import write_result
from benchmarks.wikitext import in_new_process, lorif, prepare
from tasks.demo.object_store import MotoServer, upload_folder
from tasks.environment import environment

_BUCKET = "latency"
_POSITIONS = 128


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lorif-latency-") as scratch, MotoServer() as server:
        folder = Path(scratch)
        cache = {"LORIF_CACHE": str(folder / "cache")}
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        server.make_bucket(_BUCKET)
        upload_folder(server, folder, _BUCKET, "data")
        latencies = {"without": 0.0, "with": arguments.latency}
        rates: dict[str, list[float]] = {name: [] for name in latencies}
        with environment({**server.environment(), **cache}):
            for number in range(arguments.rounds):
                for name, latency in latencies.items():
                    with proxy(server.url, latency) as endpoint:
                        config = write_config(folder, endpoint, f"{name}-{number}")
                        seconds, built = lorif("build", "-c", str(config))
                    rates[name].append(built["tokens"] / built["timings"]["index"])
                    print(f"{name} latency: {rates[name][-1]:,.0f} tokens/s, {seconds:.0f} s in all", flush=True)
    ratios = [slow / fast for slow, fast in zip(rates["with"], rates["without"], strict=True)]
    result = {
        "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}",
        "sequences": arguments.sequences,
        "latency_ms": arguments.latency * 1000,
        "tokens_per_second": {name: [round(rate) for rate in per_round] for name, per_round in rates.items()},
        "throughput_kept": {
            "median": round(statistics.median(ratios), 3),
            "rounds": [round(r, 3) for r in ratios],
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


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
    """Run a proxy in its own process, even if it adds no latency; yields its address."""
    command = [sys.executable, "-m", "tests.servers.proxy", upstream, "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def write_config(folder: Path, endpoint: str, index: str) -> Path:
    """Write a CONFIG that leaves everything else at its default."""
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
