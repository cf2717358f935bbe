"""Tokens per second of a build, of a training step and of a lower bound, on the same batches in the same run.

    python -m benchmarks.build [--shapes 4x256 smollm2-135m ... --rounds 5 --out FILE]

`train` is a plain forward and backward pass of the model as transformers loads it, weight gradients included.
`floor`, the lower bound, is a forward and an activation-only backward pass of the same model. A build is
`Extractor.extract`: both passes, projections and codes. `version 1 balanced` is the default of the first release,
`dense 16 x 16` what Bergson stores by default. Ratios are medians over interleaved rounds of (variant / train).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.run_record import write_result
from benchmarks.shapes import SHAPES, Shape
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.batches import Batch
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.roots import exact_roots
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.lifecycle.tracking import layers_of_model
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

Step = Callable[[Batch], Any]
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in ("paper", "compact", "balanced", "fine", "quality")},
    "balanced, all MLPs": {"preset": "balanced", "model": {"layers": "mlp"}},
    "version 1 balanced": {
        "model": {"layers": "all"},
        "projection": {"kind": "random", "whiten": True, "factor": 2},
        "code": {"kind": "cut", "rank": 4, "dtype": "sign"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {name: measured(SHAPES[name], arguments.rounds) for name in arguments.shapes}
    if arguments.out:
        write_result(arguments.out, {"threads": torch.get_num_threads(), "shapes": results})


def measured(shape: Shape, rounds: int) -> dict[str, Any]:
    """Time all variants of one shape, and print their ratios."""
    model = shape.make()
    batches = random_batches(shape, model.config.vocab_size)
    variants = make_variants(model, batches[0])
    seconds = measure({name: step for name, (step, _) in variants.items()}, batches, rounds)
    tokens = len(batches) * shape.rows * shape.tokens
    print(f"{shape.description}; batches of {shape.rows} x {shape.tokens} tokens")
    rows = {}
    for name, (_, size) in variants.items():
        ratio = statistics.median(t / base for t, base in zip(seconds[name], seconds["train"], strict=True))
        speed = tokens / statistics.median(seconds[name])
        rows[name] = {"tokens_per_second": round(speed, 1), "ratio": round(ratio, 3), "bytes_per_example": size}
        print(f"{name:>22}: {speed:8.0f} tokens/s, {ratio:.3f} of training, {size:,} bytes an example")
    return {
        "model": shape.description,
        "rows": shape.rows,
        "tokens": shape.tokens,
        "rounds": rounds,
        "variants": rows,
    }


def random_batches(shape: Shape, vocabulary: int, count: int = 2) -> list[Batch]:
    """Batches of random tokens without padding, so that nothing but the model's shape matters."""
    rng, lengths = np.random.default_rng(0), np.full(shape.rows, shape.tokens)
    ids = rng.integers(0, vocabulary, (count, shape.rows, shape.tokens))
    return [Batch(list(range(shape.rows)), part, part.copy(), lengths) for part in ids]


def make_variants(model: PreTrainedModel, calibration: Batch) -> dict[str, tuple[Step, int]]:
    """One step per variant, and its bytes per example."""
    variants: dict[str, tuple[Step, int]] = {
        "train": (training_step(copy.deepcopy(model)), 0),
        "floor": (floor_step(copy.deepcopy(model)), 0),
    }
    loaded = prepare_model(model)
    for name, keys in CONFIGS.items():
        extractor = extractor_of(loaded, keys, calibration)
        variants[f"build {name}"] = extractor.extract, extractor.layout.bytes_per_example
    dense = dense_16(loaded)
    variants["dense 16 x 16"] = dense.extract, dense.layout.bytes_per_example
    return variants


def extractor_of(loaded: LoadedModel, keys: dict[str, Any], calibration: Batch) -> Extractor:
    """The extractor of a config's presets and keys, calibrated on one batch."""
    required = {"index": "-", "corpus": {"uri": "-"}, "model": {"path": "-", **keys.get("model", {})}}
    config: Config = parse_config({**keys, **required})
    layers = layers_of_model(config, loaded.model, {}).specs
    projection = projection_spec(config)
    roots = None
    if projection.is_whitened:
        calibrator = Calibrator(loaded, layers, projection)
        calibrator.add(calibration)
        roots = exact_roots(calibrator.covariances)
    return Extractor(loaded, layers, projection, code_spec(config.code, layers), roots)


def dense_16(loaded: LoadedModel) -> Extractor:
    """Random projections of every layer to 16 x 16, stored in float16."""
    layers = tuple(
        LayerSpec(layer.name, layer.in_features, layer.out_features, 16, 16)
        for layer in layer_specs(select_layers(loaded.model), 16)
    )
    return Extractor(loaded, layers, ProjectionSpec(factor=16), CodeSpec("dense", 1, "float16"))


def training_step(model: torch.nn.Module) -> Step:
    """A forward and backward pass with weight gradients."""
    model.train().requires_grad_(True)

    def step(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()

    return step


def floor_step(model: torch.nn.Module) -> Step:
    """A forward pass and an activation-only backward pass down to the embeddings, without capture."""
    model.eval().requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_(True))

    def step(batch: Batch) -> None:
        ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()

    return step


def measure(variants: dict[str, Step], batches: list[Batch], rounds: int) -> dict[str, list[float]]:
    """Seconds per round of every variant, interleaved so that other load on the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, step in variants.items():
            started = time.perf_counter()
            for batch in batches:
                step(batch)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
