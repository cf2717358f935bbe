"""Tokens per second and memory of a training with and without recording, in interleaved blocks of one run.

    python -m benchmarks.recording [--shape 4x256 --steps 4 --blocks 4 --preset balanced --out FILE]

Both arms are the same process, model and optimiser; recording is switched on and off between blocks, after the
whitening was made. CPU seconds are those of all threads. The peak is the resident memory of a block.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.run_record import write_result
from benchmarks.shapes import SHAPES
from lorif_core.free_memory import peak_memory, reset_peak
from lorif_core.recording.record import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4x256")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=4, help="pairs of blocks")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--bfloat16", action="store_true", help="train under autocast")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="lorif-recording-") as name:
        result = measure(arguments, Path(name), torch.device(device))
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def measure(arguments: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, Any]:
    """Train some blocks of steps with and without recording."""
    shape = SHAPES[arguments.shape]
    model = shape.make().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    vocabulary, generator = model.config.vocab_size, torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randint(0, vocabulary, (shape.rows, shape.tokens), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def block(number: int) -> dict[str, float]:
        reset_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(number):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": float(peak or 0)}

    arms: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    settings: dict[str, Any] = {"projection": {"calibration_examples": 2 * shape.rows}, "preset": arguments.preset}
    corpus = [{"tokens": [1, 2]}]  # nothing is published
    where: dict[str, Any] = {"corpus": corpus, "columns": {"tokens": "tokens"}, "checkpoint": folder / "none"}
    with record(model, folder / "index", **where, **settings) as recorder:
        block(4)  # makes the whitening, and warms both arms up
        for number in range(arguments.blocks):
            for recording in (number % 2 == 0, number % 2 == 1):
                recorder.enabled = recording
                arms[recording].append(block(arguments.steps))
        stopped, row_bytes = recorder.stopped, recorder.bytes_per_row
    if stopped:
        raise RuntimeError(stopped)
    return summary(arguments, shape.rows * shape.tokens * arguments.steps, arms, row_bytes)


def summary(
    arguments: argparse.Namespace, tokens: int, arms: dict[bool, list[dict[str, float]]], row_bytes: int
) -> dict[str, Any]:
    """Medians over blocks, and the share that recording adds."""
    medians = {
        name: {key: statistics.median(block[key] for block in blocks) for key in ("wall", "cpu", "peak")}
        for name, blocks in (("without", arms[False]), ("with", arms[True]))
    }
    return {
        "shape": arguments.shape,
        "description": SHAPES[arguments.shape].description,
        "preset": arguments.preset,
        "bytes_per_row": row_bytes,
        "tokens_per_second": {name: round(tokens / arm["wall"], 1) for name, arm in medians.items()},
        "tokens_per_cpu_second": {name: round(tokens / arm["cpu"], 1) for name, arm in medians.items()},
        "overhead": {
            key: round(medians["with"][key] / medians["without"][key] - 1, 4) for key in ("wall", "cpu", "peak")
        },
        "peak_bytes": {name: int(arm["peak"]) for name, arm in medians.items()},
    }


if __name__ == "__main__":
    main()
