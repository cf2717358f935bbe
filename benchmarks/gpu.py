"""A build on a GPU next to a training step: tokens per second, memory, roots of the whitening, and scans of codes.

    python -m benchmarks.gpu [--shapes smollm2-135m llama-1b llama-8b llama-70b-2 --rounds 5 --out FILE]

Models have random weights in bfloat16 on the first GPU, and batches have random tokens. A training step computes
weight gradients but updates nothing. A build is `Extractor.extract` with the codes of the default preset: passes,
whitening, codes, and their transfer to the host. Scans score random codes that are on the GPU. It needs no Lance,
so it runs where only torch, transformers and a few small packages are installed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.run_record import write_result
from lorif_core.corpus.batches import Batch
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.roots import SideMatrices, whitened_sides
from lorif_core.gradients.whitening import SIDES, Covariances
from lorif_core.model.layers import choose_layers, folded_layer_specs
from lorif_core.model.loading import prepare_model
from lorif_core.search.bfloat16_prefilter import BFloat16Scorer, to_bfloat16
from lorif_core.search.scoring import FoldedQueries
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

_GPU = torch.device("cuda")
_PROJECTION = ProjectionSpec("folded-whitened", 1)
_CODE = CodeSpec("cut", 8, "sign")  # of the default preset
_SIDE = 1024  # the largest of `projection.max_side: auto`
_BATCHES = 4
_SCANNED_BYTES = 2**30
_QUERY_COUNTS = (1, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama, and the rows and tokens of a batch."""

    description: str
    config: dict[str, int]
    rows: int
    tokens: int = 512


def _llama(width: int, hidden: int, blocks: int, heads: int, key_heads: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": vocabulary,
    }  # fmt: skip


SHAPES = {
    "smollm2-135m": Shape("SmolLM2-135M", _llama(576, 1536, 30, 9, 3, 49152), 32),
    "llama-1b": Shape("Llama 3.2 1B", _llama(2048, 8192, 16, 32, 8, 128256), 16),
    "llama-8b": Shape("Llama 3.1 8B", _llama(4096, 14336, 32, 32, 8, 128256), 8),
    "llama-70b-2": Shape("2 of the 80 blocks of Llama 3.1 70B", _llama(8192, 28672, 2, 64, 8, 128256), 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(_GPU),
        "shapes": {},
    }
    for name in arguments.shapes:
        result["shapes"][name] = measured(SHAPES[name], arguments.rounds)
        print(name, json.dumps(result["shapes"][name]), flush=True)
        if arguments.out:
            write_result(arguments.out, result)


def measured(shape: Shape, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape.config, tie_word_embeddings=False)
    with _GPU:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    batches = random_batches(shape)
    weights = torch.cuda.memory_allocated(_GPU)
    train, train_peak = timed(lambda batch: train_step(model, batch), batches, rounds)
    model.zero_grad(set_to_none=True)
    loaded = prepare_model(model)
    layers = folded_layer_specs(choose_layers(loaded.model, "auto").layers, None, _SIDE)
    calibrator = Calibrator(loaded, layers, _PROJECTION)
    calibrate, _ = timed(calibrator.add, batches, rounds)
    covariances = calibrator.covariances
    started = time.perf_counter()
    roots = roots_on_gpu(covariances, layers)
    root_seconds = time.perf_counter() - started
    extractor = Extractor(loaded, layers, _PROJECTION, _CODE, roots)
    extractor.check()
    build, build_peak = timed(extractor.extract, batches, rounds)
    tokens = shape.rows * shape.tokens
    return {
        "model": shape.description,
        "batch": [shape.rows, shape.tokens],
        "rounds": rounds,
        "layers": len(layers),
        "bytes_per_example": extractor.layout.bytes_per_example,
        "weights_gib": gib(weights),
        "train": {"tokens_per_second": round(tokens / train), "peak_gib": gib(train_peak)},
        "calibration": {"tokens_per_second": round(tokens / calibrate)},
        "build": {
            "tokens_per_second": round(tokens / build),
            "peak_gib": gib(build_peak),
            "of_training": round(build / train, 3),
        },
        "roots": {"sides": 2 * len(layers), "seconds": round(root_seconds, 2)},
        "scans": scans(extractor.layout, rounds),
    }  # fmt: skip


def random_batches(shape: Shape) -> list[Batch]:
    """Batches of random tokens without padding."""
    rng, lengths = np.random.default_rng(0), np.full(shape.rows, shape.tokens)
    ids = rng.integers(0, shape.config["vocab_size"], (_BATCHES, shape.rows, shape.tokens))
    return [Batch(list(range(shape.rows)), part, part.copy(), lengths) for part in ids]


def train_step(model: Any, batch: Batch) -> None:
    """A forward and backward pass with weight gradients."""
    model.train().requires_grad_(True).zero_grad(set_to_none=True)
    ids = torch.from_numpy(batch.input_ids).to(_GPU)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def timed(step: Callable[[Batch], Any], batches: list[Batch], rounds: int) -> tuple[float, int]:
    """Median seconds of a batch over the rounds, and the peak of allocated bytes; a first round is not counted."""
    seconds = []
    for number in range(rounds + 1):
        torch.cuda.synchronize(_GPU)
        if number == 1:
            torch.cuda.reset_peak_memory_stats(_GPU)
        started = time.perf_counter()
        for batch in batches:
            step(batch)
        torch.cuda.synchronize(_GPU)
        seconds.append((time.perf_counter() - started) / len(batches))
    return statistics.median(seconds[1:]), torch.cuda.max_memory_allocated(_GPU)


def roots_on_gpu(covariances: Covariances, layers: tuple[LayerSpec, ...]) -> SideMatrices:
    """The roots as a worker of the calibration computes and packs them."""
    means = (
        ([(layer, side)], covariances.mean(layer, side).to(_GPU)) for layer in range(len(layers)) for side in SIDES
    )
    sides = whitened_sides(means)
    return SideMatrices({(side.summary.layer, side.summary.side): side.matrix for side in sides})


def scans(layout: CodeLayout, rounds: int) -> dict[str, float]:
    """GB/s of codes by the number of queries: the prefilter of a search, over random codes on the GPU."""
    rows = max(1, _SCANNED_BYTES // layout.bytes_per_example)
    codes = torch.randint(0, 256, (rows, layout.stored_width), dtype=torch.uint8, device=_GPU)
    scales = torch.rand(rows, layout.scales, device=_GPU)
    speeds = {}
    for count in _QUERY_COUNTS:
        folded = FoldedQueries(
            tuple(torch.randn(count, slot.layer.d1 * slot.layer.d2, device=_GPU) for slot in layout.slots)
        )
        scorer, seconds = BFloat16Scorer(layout, to_bfloat16(folded)), []
        for _ in range(rounds + 1):
            torch.cuda.synchronize(_GPU)
            started = time.perf_counter()
            scorer.scores(codes, scales)
            torch.cuda.synchronize(_GPU)
            seconds.append(time.perf_counter() - started)
        speeds[str(count)] = round(rows * layout.bytes_per_example / statistics.median(seconds[1:]) / 1e9, 2)
    return {"rows": rows, "gb_per_second": speeds}  # type: ignore[dict-item]


def gib(size: int) -> float:
    """GiB of bytes."""
    return round(size / 2**30, 2)


if __name__ == "__main__":
    main()
