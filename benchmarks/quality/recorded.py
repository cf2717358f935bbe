"""LDS of rows that were recorded during training, next to rows that were computed afterwards, on one testbed.

    python -m benchmarks.quality.recorded TESTBED OUT --result benchmarks/results/recorded.json [--preset balanced]

TESTBED has a finished ground truth (`lorif evaluate lds`). The model is trained on the whole corpus once for each
recording, as the attributed model of the ground truth was, and must end with its weights up to rounding. Rows of
examples that training showed only before the metric was there are computed afterwards, as recording does.
Each index is asked in the metric of whitening, of Adam's second moments, or of both.
"""

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import lorif_core as lc
from benchmarks.quality.finished import finished_truth, testbed_evaluation
from benchmarks.quality.layers import rounded
from benchmarks.run_record import write_result
from lorif_core.config import StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.ground_truth import Trainer, TruthFolder
from lorif_core.evaluation.lds import bootstrap
from lorif_core.lifecycle.local_build import build_here
from lorif_core.recording.recorder import Recorder
from lorif_core.search.index import Index
from lorif_core.search.queries import read_queries
from lorif_core.tables.store import Store

_LOCAL = StorageConfig()
_STATE = "optimizer.pt"
_ADAM, _BOTH = "Adam", "both"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording: how several sightings become one row, whether only the first epoch counts, and the metric."""

    sightings: Any
    first_epoch: bool = False
    metric: str = ""


_RECORDINGS = {
    "epoch 1": Recording("last", first_epoch=True),
    "last": Recording("last"),
    "mean": Recording("mean"),
    "each": Recording("each"),
    "last, both": Recording("last", metric=_BOTH),
}
_AFTERWARDS = {"trained": "", "trained, Adam": _ADAM, "trained, both": _BOTH}
_PAIRS = [
    *((name, "trained") for name in ("epoch 1", "last", "mean", "each", "trained, Adam", "trained, both")),
    ("last, both", "trained, both"),
]


class Bench:
    """The models and indexes of one testbed.

    Args:
        testbed: its folder.
        out: folder of models and indexes; what it has is not made again.
        preset: preset of all indexes.
        calibration: examples of a whitening.
    """

    def __init__(self, testbed: Path, out: Path, preset: str, calibration: int) -> None:
        self._out, self._preset, self._calibration = out, preset, calibration
        self.evaluation: EvaluationConfig = testbed_evaluation(testbed)
        self.truth = finished_truth(testbed)
        self._folder = TruthFolder(str(testbed / "out"), _LOCAL)
        self._trainer = Trainer(self.evaluation)
        self.ids = self._folder.ids()

    def afterwards(self, name: str, metric: str) -> np.ndarray:
        """Scores (Q, N) of an index that is built of the trained model."""
        index = self._out / name
        if not Store(str(index), _LOCAL).generations():
            state = {"optimizer_state": str(self._out / _STATE)} if metric else {}
            raw = {**self.evaluation.config, **self._sections(metric, state), "index": str(index)}
            raw["model"] = {**raw["model"], "path": self._folder.model}
            build_here(parse_config(raw, name))
        return self._scores(index)

    def recorded(self, name: str, recording: Recording) -> np.ndarray:
        """Scores (Q, N) of an index that is recorded while the model is trained."""
        index = self._out / name
        if not Store(str(index), _LOCAL).generations():
            self._record(index, recording)
        return self._scores(index)

    def _sections(self, metric: str, state: Mapping[str, str]) -> dict[str, Any]:
        """Keys of CONFIG for a metric."""
        if metric == _ADAM:
            projection: dict[str, Any] = {"whiten": False}
        else:
            projection = {"calibration_examples": self._calibration}
        curvature = {"curvature": {"kind": "adam", **state}} if metric else {}
        return {"preset": self._preset, "projection": projection, **curvature}

    def _record(self, index: Path, recording: Recording) -> None:
        recipe, trained = self.evaluation.training.recipe(), self._out / f"{index.name}-model"
        steps = -(-len(self._trainer.examples) // recipe.batch)
        section = dict(self.evaluation.config["corpus"])
        model = self._trainer.untrained().requires_grad_(True)
        with (
            lc.record(
                model, index, checkpoint=trained, corpus=section.pop("uri"), columns=section,
                begin=round(recipe.warmup_share * recipe.epochs * steps), sightings=recording.sightings,
                **self._sections(recording.metric, {}),
            ) as recorder,
            _first_epoch_only(recorder, steps, recording.first_epoch),
            _saved_optimizer(self._out / _STATE),
        ):  # fmt: skip
            self._trainer.train(model, range(len(self._trainer.examples)), 0)
            self._trainer.save(model, str(trained), _LOCAL)
        if recorder.stopped:
            raise RuntimeError(recorder.stopped)
        _require_same_weights(model, self._folder.model)

    def _scores(self, folder: Path) -> np.ndarray:
        store = Store(str(folder), _LOCAL)
        index = Index(store, store.generations()[-1])
        queries = read_queries(self.evaluation.queries, _LOCAL)
        found, scores = index.scores_folded(index.fold(index.encode(queries)))
        columns = {example_id: column for column, example_id in enumerate(self.ids)}
        aligned = np.zeros((len(queries), len(self.ids)), np.float32)
        aligned[:, [columns[example_id] for example_id in found]] = scores
        return aligned


@contextmanager
def _first_epoch_only(recorder: Recorder, steps: int, only: bool) -> Iterator[None]:
    """Stop recording after so many optimiser steps."""

    def count(*_: Any) -> None:
        if only and recorder.step >= steps:
            recorder.enabled = False

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _saved_optimizer(path: Path) -> Iterator[None]:
    """Save the state of the optimiser that a training used."""
    seen: list[torch.optim.Optimizer] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer) if not seen else None)
    try:
        yield
    finally:
        handle.remove()
    torch.save(seen[0].state_dict(), path)


def _require_same_weights(model: torch.nn.Module, folder: str) -> None:
    """Raise RuntimeError unless recording has left the training as it was."""
    from safetensors.torch import load_file

    stored = load_file(f"{folder}/model.safetensors")
    own = model.state_dict()
    worst = max(float((own[name] - value).abs().max()) for name, value in stored.items())
    print(f"weights differ from the attributed model's by at most {worst:.1e}", flush=True)
    if worst > 1e-3:  # rounding depends on the number of threads
        raise RuntimeError("the recorded training has other weights than the attributed model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--calibration", type=int, default=128, help="examples of the first metric")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(arguments.testbed.resolve(), arguments.out.resolve(), arguments.preset, arguments.calibration)
    write_result(arguments.result, {"testbed": arguments.testbed.name, **measure(bench, arguments.preset)})


def measure(bench: Bench, preset: str) -> dict[str, Any]:
    """LDS of every way to make rows, and its difference to rows computed after training."""
    scores = {name: bench.recorded(name, recording) for name, recording in _RECORDINGS.items()}
    scores |= {name: bench.afterwards(name, metric) for name, metric in _AFTERWARDS.items()}
    singles, paired = bootstrap(scores, bench.truth, _PAIRS)
    return {
        "preset": preset,
        "subsets": len(bench.truth.losses),
        "queries": bench.truth.losses.shape[1],
        "examples": len(bench.ids),
        "lds": {name: rounded(interval) for name, interval in singles.items()},
        "differences": [
            {"first": first, "second": second, "difference": rounded(paired[first, second])}
            for first, second in _PAIRS
        ],
    }


if __name__ == "__main__":
    main()
