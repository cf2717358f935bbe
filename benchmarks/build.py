"""Tokens per second of a build, of a training step and of a lower bound, on the same batches in the same run.

    python -m benchmarks.build [--layers 4 --width 256 --length 128 --out FILE]

`train` is a plain forward and backward pass of the model as transformers loads it, weight gradients included.
`floor`, the lower bound, is a forward and an activation-only backward pass of the same model. A build is
`Extractor.extract`: both passes, projections and codes. The variants that are named after presets are whitened.
Ratios are medians over interleaved rounds of (variant / train).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.run_record import write_result
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs, make_model, train_tokenizer
from lorif_core.corpus.batches import Batch, collate, padding_waste, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.model.loading import prepare_model
from lorif_core.presets import PRESETS
from lorif_core.spec import CodeSpec, ProjectionSpec

FACTORS = (4, 8, 16)


def main() -> None:
    arguments = parse_arguments()
    batches, waste = real_batches(arguments.text, arguments.length, arguments.budget, arguments.batches)
    model = make_model(arguments.layers, arguments.width, arguments.length)
    variants = make_variants(model, batches[0])
    tokens = sum(int((batch.labels != -100).sum()) for batch in batches)
    seconds = measure(variants, batches, arguments.rounds)
    rows = summarise(seconds, tokens)
    result = {
        "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}, {arguments.length} tokens at most",
        "threads": torch.get_num_threads(),
        "tokens_per_round": tokens,
        "padding_waste": round(waste, 4),
        "rounds": arguments.rounds,
        "variants": rows,
    }
    for name, row in rows.items():
        print(f"{name:>22}: {row['tokens_per_second']:8.0f} tokens/s, {row['ratio']:.3f} of training")
    print(f"padding waste {waste:.2%}")
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def real_batches(path: Path, length: int, budget: int, count: int) -> tuple[list[Batch], float]:
    """Token-budget batches of real paragraphs, from short to long ones, and the padding waste of all batches."""
    texts = load_paragraphs(path)
    tokenizer = train_tokenizer(texts)
    encoded = [ids[:length] for ids in tokenizer(texts[:2048])["input_ids"]]
    examples = [
        Example(str(i), i, np.asarray(ids, np.int32), np.asarray(ids, np.int32), None, "")
        for i, ids in enumerate(encoded)
    ]
    lengths = [len(ids) for ids in encoded]
    all_batches = token_budget_batches(lengths, budget)
    selected = np.linspace(0, len(all_batches) - 1, count).astype(int)
    return [collate(examples, all_batches[i]) for i in selected], padding_waste(lengths, all_batches)


def make_variants(model: torch.nn.Module, calibration: Batch) -> dict[str, Callable[[Batch], None]]:
    """One step per variant; each has its own copy of the model."""
    variants: dict[str, Callable[[Batch], None]] = {
        "train": training_step(copy.deepcopy(model)),
        "floor": floor_step(copy.deepcopy(model)),
    }
    for factor in FACTORS:
        loaded = prepare_model(copy.deepcopy(model))
        layers = layer_specs(select_layers(loaded.model, None), factor)
        for code in (CodeSpec("dense", 1, "float16"), CodeSpec("rank", 1, "float16")):
            extractor = Extractor(loaded, layers, ProjectionSpec(factor=factor), code)
            variants[f"build f{factor} {code.kind}"] = extractor.extract  # type: ignore[assignment]
    for name in ("compact", "balanced", "quality"):
        variants[f"build {name}"] = whitened(copy.deepcopy(model), calibration, name).extract  # type: ignore[assignment]
    return variants


def whitened(model: torch.nn.Module, calibration: Batch, preset: str) -> Extractor:
    """The extractor of a preset with whitened projections."""
    loaded, factor = prepare_model(model), PRESETS[preset]["projection"]["factor"]
    layers = layer_specs(select_layers(loaded.model, None), factor)
    calibrator = Calibrator(loaded, layers, ProjectionSpec(factor=factor))
    calibrator.add(calibration)
    code = CodeSpec(**{"rank": 1, **PRESETS[preset]["code"]})
    return Extractor(loaded, layers, ProjectionSpec("whitened", factor), code, calibrator.covariances)


def training_step(model: torch.nn.Module) -> Callable[[Batch], None]:
    """A forward and backward pass with weight gradients."""
    model.train().requires_grad_(True)

    def step(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()

    return step


def floor_step(model: torch.nn.Module) -> Callable[[Batch], None]:
    """A forward pass and an activation-only backward pass down to the embeddings, without capture."""
    model.eval().requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_(True))

    def step(batch: Batch) -> None:
        ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()

    return step


def measure(
    variants: dict[str, Callable[[Batch], None]], batches: list[Batch], rounds: int
) -> dict[str, list[float]]:
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


def summarise(seconds: dict[str, list[float]], tokens: int) -> dict[str, dict[str, float]]:
    """Median tokens per second, and the median over rounds of the ratio to training."""
    return {
        name: {
            "tokens_per_second": round(tokens / statistics.median(times), 1),
            "ratio": round(
                statistics.median(t / base for t, base in zip(times, seconds["train"], strict=True)), 3
            ),
        }
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    main()
