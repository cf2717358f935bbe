"""Plans of published models without weights, and how far plans and `lorif check` are from what then happens.

    python -m benchmarks.plans --model FOLDER [--text FILE] [--out FILE]

Three parts: sizes and memory that the default preset has for models from 1B to 70B; the peak memory of calibration
and indexing of a few real-shaped blocks, each in a new process, next to the plan for exactly these blocks; memory
and time that `lorif check` predicts, next to what `lorif build` and `lorif query` take, for a small model and for
the pretrained one in FOLDER.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM

from benchmarks.memory import in_new_process
from benchmarks.plan_shapes import PUBLISHED, skeleton
from benchmarks.processes import watched_lorif
from benchmarks.run_record import write_result
from benchmarks.workload import DEFAULT_TEXT, load_paragraphs, make_model, train_tokenizer
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.batches import Batch
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.footprint import BatchShape
from lorif_core.gradients.roots import exact_roots
from lorif_core.lifecycle.memory_plan import plan_memory
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.lifecycle.tracking import layers_of_model
from lorif_core.lifecycle.trial import Gauge
from lorif_core.model.loading import Skeleton, prepare_model
from lorif_core.spec import IndexSpec, TokenSpec
from tasks.environment import prepare_run

_PLANNED_BATCH = BatchShape(16, 512)
_RUN_BATCH = BatchShape(4, 256)
_BLOCKS = {"Llama 3.2 1B": 2, "Llama 3.1 8B": 2, "Llama 3.1 70B": 1, "OLMoE-1B-7B": 2, "Qwen3-30B-A3B": 1}
_VOCABULARY = 16384  # of models that run
_CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "all layers": {"model": {"layers": "all"}},
    "`code.bytes: 4096`": {"code": {"bytes": 4096}},
    "`quality`": {"preset": "quality"},
}
_STAGES = ("calibration", "indexing", "query", "driver")
_PARAGRAPHS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "batch": vars_of(_PLANNED_BATCH),
        "run_batch": vars_of(_RUN_BATCH),
        "plans": {name: planned(name) for name in PUBLISHED},
    }
    print(json.dumps(result, indent=1))
    with tempfile.TemporaryDirectory(prefix="lorif-plans-") as folder:
        models = {"4x256": small_model(Path(folder) / "model", arguments.text)}
        if arguments.model is not None:
            models["SmolLM2-135M"] = arguments.model
        result["checks"] = {}
        for name, path in models.items():
            result["checks"][name] = check_and_build(path, arguments.text, Path(folder) / name)
            print(json.dumps(result["checks"], indent=1), flush=True)
    result["runs"] = {name: in_new_process(run_blocks, name) for name in PUBLISHED}
    print(json.dumps(result["runs"], indent=1))
    if arguments.out:
        write_result(arguments.out, result)


def vars_of(shape: BatchShape) -> list[int]:
    """Examples and tokens."""
    return [shape.examples, shape.tokens]


def planned(name: str) -> dict[str, Any]:
    """Sizes of a whole model under some configs, and its memory under the default one."""
    model = skeleton(PUBLISHED[name](), "bfloat16")
    rows = {}
    for label, keys in _CONFIGS.items():
        spec = spec_of(model, config_of(**keys))
        rows[label] = {
            "layers": len(spec.layers),
            "largest_side": max(max(layer.d1, layer.d2) for layer in spec.layers),
            "bytes": CodeLayout(spec.layers, spec.code).bytes_per_example,
        }
    spec = spec_of(model, config_of())
    peaks = plan_memory(model.model, spec, _PLANNED_BATCH, config_of().compute.memory_gb)
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    return {
        "billions": round(parameters / 1e9, 2),
        "weights_gib": gib(peaks.weights),
        "memory_gib": {stage: gib(getattr(peaks, stage) or 0) for stage in _STAGES},
        "configs": rows,
    }


def run_blocks(name: str) -> dict[str, Any]:
    """Plan and peak of calibration and indexing with a few blocks of a model, in this process."""
    blocks, config, gauge = _BLOCKS[name], config_of(), Gauge()
    model_config = PUBLISHED[name](num_hidden_layers=blocks, vocab_size=_VOCABULARY, tie_word_embeddings=True)
    meta = skeleton(model_config, "float32")
    spec = spec_of(meta, config)
    peaks = plan_memory(meta.model, spec, _RUN_BATCH, config.compute.memory_gb, gauge.process or 0)
    torch.manual_seed(0)
    loaded = prepare_model(AutoModelForCausalLM.from_config(model_config))
    batch = random_batch(_RUN_BATCH)
    calibrator = Calibrator(loaded, spec.layers, spec.projection)
    calibrated = gauge.step([batch], calibrator.add)
    extractor = Extractor(loaded, spec.layers, spec.projection, spec.code, exact_roots(calibrator.covariances))
    indexed = gauge.step([batch], extractor.extract)
    return {
        "blocks": blocks,
        "weights_gib": gib(peaks.weights),
        "layers": len(spec.layers),
        "memory_gib": {
            "calibration": compared(gib(peaks.calibration or 0), gib(calibrated.peak or 0)),
            "indexing": compared(gib(peaks.indexing or 0), gib(indexed.peak or 0)),
        },
    }


def config_of(**keys: Any) -> Config:
    """A config of the default preset with further keys."""
    required = {"index": "-", "corpus": {"uri": "-"}, "model": {"path": "-", **keys.get("model", {})}}
    return parse_config({**keys, **required})


def spec_of(model: Skeleton, config: Config) -> IndexSpec:
    """The spec of the rows of a model that has no checkpoint."""
    layers = layers_of_model(config, model.model, model.uncapturable).specs
    tokens = TokenSpec("none", "text", None, None, None, None, None, _PLANNED_BATCH.tokens, False)
    return IndexSpec("none", model.dtype, layers, projection_spec(config), code_spec(config.code, layers), tokens)


def random_batch(shape: BatchShape) -> Batch:
    """Random tokens without padding."""
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, (shape.examples, shape.tokens))
    return Batch(list(range(shape.examples)), ids, ids.copy(), np.full(shape.examples, shape.tokens))


def small_model(folder: Path, text: Path) -> Path:
    """A GPT-2 of four blocks with its tokenizer."""
    train_tokenizer(load_paragraphs(text)).save_pretrained(folder)
    make_model(4, 256, 512).save_pretrained(folder)
    return folder


def check_and_build(model: Path, text: Path, folder: Path) -> dict[str, Any]:
    """What `lorif check` predicts, and what `lorif build` and `lorif query` take, over some paragraphs."""
    folder.mkdir()
    paragraphs = load_paragraphs(text)[:_PARAGRAPHS]
    lines = [json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(paragraphs)]
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    config = {
        "index": str(folder / "index"),
        "model": {"path": str(model.resolve())},
        "corpus": {"uri": str(folder / "corpus.jsonl"), "id": "id"},
        "compute": {"workers": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    checked, _ = run_command(folder, "check", "-c", path)
    built, building = run_command(folder, "build", "-c", path)
    _, asking = run_command(folder, "query", folder / "index", "--text", paragraphs[0])
    memory, seconds, took = checked["memory"], checked["seconds"], built["timings"]
    stages = [memory[stage] for stage in ("calibration", "indexing")]
    return {
        "paragraphs": len(paragraphs),
        "tokens": checked["tokens"],
        "seconds": {
            "calibration": compared(seconds["calibration"], took["calibrate"]),
            "roots and indexing": compared(seconds["roots"] + seconds["indexing"], took["index"]),
        },
        "memory_gib": {
            name: compared(gib(estimate), gib(peak))
            for name, estimate, peak in (
                ("worker", max(stage["estimate"] for stage in stages), building["worker"]),
                ("worker, as the sample had it", max(stage["measured"] for stage in stages), building["worker"]),
                ("driver", memory["driver"]["estimate"], building["driver"]),
                ("query", memory["query"]["estimate"], asking["driver"]),
            )
        },
    }


def gib(size: float) -> float:
    """GiB of a number of bytes."""
    return round(size / 2**30, 2)


def compared(predicted: float, taken: float) -> dict[str, float]:
    """A prediction, what happened, and their ratio."""
    return {"predicted": round(predicted, 2), "taken": round(taken, 2), "ratio": round(predicted / taken, 2)}


def run_command(folder: Path, *words: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """The JSON that a command of lorif prints, and the peak bytes of its process and of its worker."""
    printed, _, watched = watched_lorif(folder, *words)
    return printed, {role: round(peak * 2**20) for role, peak in watched.peaks.items()}


if __name__ == "__main__":
    os.environ.update(RAY_worker_niceness="0")  # for times that compare, whatever else the machine does
    prepare_run("local")
    main()
