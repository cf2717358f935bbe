"""Latency and throughput of `lorif serve` for 200 questions, one at a time and all at once.

    python -m benchmarks.serve [--sequences 866 --layers 4 --width 128 --out FILE]

The index has the size of the demo's and the default preset. Questions are different paragraphs of the text.
Questions that wait at the same time share a scan, so all at once are answered faster than one after another.
Questions one at a time are also measured without codes in memory.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.run_record import write_result
from benchmarks.wikitext import in_new_process, lorif, prepare, write_config
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs

_QUESTIONS = 200
_ROUNDS = 3
_CHARACTERS = 280


def main() -> None:
    arguments = parse_arguments()
    questions = [paragraph[:_CHARACTERS] for paragraph in load_paragraphs(arguments.text)[:_QUESTIONS]]
    with tempfile.TemporaryDirectory(prefix="lorif-serve-") as name:
        folder = Path(name)
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        _, built = lorif("build", "-c", str(write_config(folder)))
        index = str(folder / "index")
        result: dict[str, Any] = {
            "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}",
            "rows": built["rows"],
            "questions": len(questions),
            "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        }
        with served(index) as address:
            result["all_at_once"] = median_of(lambda: asyncio.run(all_at_once(address, questions)))
            result["one_at_a_time"] = median_of(lambda: one_at_a_time(address, questions))
        with served(index, "--memory-gb", "0") as address:
            result["one_at_a_time_from_disk"] = median_of(lambda: one_at_a_time(address, questions))
        result["load_average"] = [round(load, 1) for load in os.getloadavg()]
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--sequences", type=int, default=866)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@contextmanager
def served(index: str, *options: str) -> Iterator[str]:
    """Run a server in its own process; yields its address."""
    command = [str(Path(sys.executable).with_name("lorif")), "serve", index, "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["address"]
        finally:
            process.terminate()


async def all_at_once(address: str, questions: list[str]) -> dict[str, float]:
    """Ask every question on its own connection, all at the same time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as client:

        async def ask(text: str) -> float:
            started = time.perf_counter()
            reply = await client.post("answers", json={"text": text})
            reply.raise_for_status()  # every question must be answered
            return time.perf_counter() - started

        started = time.perf_counter()
        seconds = await asyncio.gather(*map(ask, questions))
    return summarise(seconds, time.perf_counter() - started)


def one_at_a_time(address: str, questions: list[str]) -> dict[str, float]:
    """Ask the questions one after another on one connection."""
    seconds = []
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        for text in questions:
            started = time.perf_counter()
            client.post("answers", json={"text": text}).raise_for_status()
            seconds.append(time.perf_counter() - started)
    return summarise(seconds, sum(seconds))


def summarise(seconds: list[float], wall: float) -> dict[str, float]:
    """Latency percentiles and throughput of questions that took `seconds` each and `wall` seconds in all."""
    p99 = statistics.quantiles(seconds, n=100)[98]
    return {
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p99_ms": round(1000 * p99, 1),
        "questions_per_second": round(len(seconds) / wall, 1),
    }


def median_of(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The round with the median throughput."""
    rounds = sorted((measure() for _ in range(_ROUNDS)), key=lambda summary: summary["questions_per_second"])
    return rounds[len(rounds) // 2]


if __name__ == "__main__":
    main()
