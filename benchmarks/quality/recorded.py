"""LDS of rows that were recorded during training, next to rows that were computed afterwards, on one testbed.

    python -m benchmarks.quality.recorded TESTBED OUT --result benchmarks/results/recorded.json [--preset balanced]

TESTBED has a finished ground truth (`lorif evaluate lds`). The model is trained on the whole corpus once for each
recording, as the ground truth's attributed model was, and must end with its weights. Rows of the first epoch lack
the examples of the warm-up and of the first metric; "trained, those of epoch 1" leaves the same ones out.
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
_AFTERWARDS = "trained"
_FIRST, _FIRST_MASKED = "epoch 1", "trained, those of epoch 1"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording: how several sightings become one row, and whether only the first epoch is recorded."""

    sightings: Any
    first_epoch: bool = False


_RECORDINGS = {_FIRST: Recording("last", True), "last": Recording("last"), "mean": Recording("mean")}


class Bench:
    """The models and indexes of one testbed.

    Args:
        testbed: its folder.
        out: folder of models and indexes; what it has is not made again.
        keys: sections of CONFIG that all indexes share.
    """

    def __init__(self, testbed: Path, out: Path, keys: Mapping[str, Any]) -> None:
        self._out, self._keys = out, keys
        self.evaluation: EvaluationConfig = testbed_evaluation(testbed)
        self.truth = finished_truth(testbed)
        self._folder = TruthFolder(str(testbed / "out"), _LOCAL)
        self._trainer = Trainer(self.evaluation)
        self.ids = self._folder.ids()

    def config(self, index: Path, extra: Mapping[str, Any]) -> Any:
        """CONFIG of an index of the attributed model."""
        raw = {**self.evaluation.config, **self._keys, **extra, "index": str(index)}
        raw["model"] = {**raw["model"], "path": self._folder.model}
        return parse_config(raw, "recorded")

    def afterwards(self, name: str, extra: Mapping[str, Any]) -> np.ndarray:
        """Scores (Q, N) of an index that is built of the trained model."""
        index = self._out / name
        if not Store(str(index), _LOCAL).generations():
            build_here(self.config(index, extra))
        return self._scores(index)

    def recorded(self, name: str, recording: Recording, extra: Mapping[str, Any]) -> np.ndarray:
        """Scores (Q, N) of an index that is recorded while the model is trained."""
        index = self._out / name
        if not Store(str(index), _LOCAL).generations():
            self._record(index, recording, extra)
        return self._scores(index)

    def _record(self, index: Path, recording: Recording, extra: Mapping[str, Any]) -> None:
        recipe = self.evaluation.training.recipe()
        steps = -(-len(self._trainer.examples) // recipe.batch)
        section = dict(self.evaluation.config["corpus"])
        model = self._trainer.untrained()
        keys = {**self._keys, **extra}
        with (
            lc.record(
                model, index, checkpoint=self._out / f"{index.name}-model", corpus=section.pop("uri"),
                columns=section, begin=round(recipe.warmup_share * recipe.epochs * steps),
                sightings=recording.sightings, **keys,
            ) as recorder,
            _first_epoch_only(recorder, steps, recording.first_epoch),
            _saved_optimizer(self._out / "optimizer.pt"),
        ):  # fmt: skip
            self._trainer.train(model, range(len(self._trainer.examples)), 0)
            self._trainer.save(model, str(self._out / f"{index.name}-model"), _LOCAL)
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
    keys = {"preset": arguments.preset, "projection": {"calibration_examples": arguments.calibration}}
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.testbed.resolve(), arguments.out.resolve(), keys)
    write_result(arguments.result, measure(bench, arguments))


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """LDS of every way to make rows, and its difference to rows computed after training."""
    scores = {_AFTERWARDS: bench.afterwards(_AFTERWARDS, {})}
    scores |= {name: bench.recorded(name, recording, {}) for name, recording in _RECORDINGS.items()}
    without = (scores[_FIRST] == 0).all(axis=0)
    scores[_FIRST_MASKED] = np.where(without, 0, scores[_AFTERWARDS])
    pairs = [(_FIRST, _FIRST_MASKED), ("last", _AFTERWARDS), ("mean", _AFTERWARDS)]
    singles, paired = bootstrap(scores, bench.truth, pairs)
    return {
        "testbed": arguments.testbed.name,
        "preset": arguments.preset,
        "subsets": len(bench.truth.losses),
        "queries": bench.truth.losses.shape[1],
        "examples": len(bench.ids),
        "without_row_in_epoch_1": int(without.sum()),
        "lds": {name: rounded(interval) for name, interval in singles.items()},
        "differences": [
            {"first": first, "second": second, "difference": rounded(paired[first, second])}
            for first, second in pairs
        ],
    }


if __name__ == "__main__":
    main()
