"""Continued pretraining: how well rows of two checkpoints answer for the second, by each policy of an update.

    python -m benchmarks.quality.continued TESTBED OUT [--share 0.75 --subsets 60 --seeds 2 --workers 2]

TESTBED is a folder of `benchmarks.quality.testbed`. Its corpus arrives in two parts: the model is trained on the
first (checkpoint 1), then on the second (checkpoint 2, attributed). The ground truth of a subset is the same:
training on its examples of the first part, then on those of the second. Runs are kept in OUT, so that it resumes.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lorif_core.config import StorageConfig
from lorif_core.evaluation.config import EvaluationConfig, load_evaluation
from lorif_core.evaluation.ground_truth import Trainer, TruthFolder, run_once, runs
from lorif_core.model.checkpoint import locate

_LOCAL = StorageConfig()
FIRST, SECOND = "1-first.jsonl", "2-second.jsonl"


class ContinuedTrainer(Trainer):
    """Trains on examples of the first part of the corpus, then on those of the second.

    Args:
        evaluation: what to train and on what.
        first: examples of the first part.
    """

    def __init__(self, evaluation: EvaluationConfig, first: int) -> None:
        super().__init__(evaluation)
        self.first = first

    def trained(self, chosen: Sequence[int], seed: int) -> Any:
        """As `Trainer`, in two runs of the recipe, each with its own optimiser, warm-up and decay."""
        model = super().trained([i for i in chosen if i < self.first], seed)
        self.train(model, [i for i in chosen if i >= self.first], seed)
        return model

    def identity(self, checkpoint: str) -> dict[str, Any]:
        """As `Trainer`, and where the second part begins."""
        return {**super().identity(checkpoint), "first": self.first}

    def save_first(self, folder: str) -> None:
        """Save checkpoint 1, the one that `save_whole` goes on from."""
        self.save(super().trained(range(self.first), 0), folder, _LOCAL)


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out.resolve()
    first = split(arguments.testbed.resolve(), out, arguments.share)
    evaluation = load(arguments.testbed.resolve(), out, arguments.subsets, arguments.seeds)
    make_truth(evaluation, out, first, arguments.workers)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.75, help="of the corpus that is there at first")
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def split(testbed: Path, out: Path, share: float) -> int:
    """Write the corpus as two files; how many examples the first has."""
    lines = (testbed / "corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    first = round(share * len(lines))
    for name, chosen in ((FIRST, lines[:first]), (SECOND, lines[first:])):
        path, text = out / "corpus" / name, "".join(chosen)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return first


def load(testbed: Path, out: Path, subsets: int, seeds: int) -> EvaluationConfig:
    """EVALUATION of the testbed, on the corpus in two parts."""
    return load_evaluation(
        testbed / "evaluation.yaml",
        [f"config.corpus.uri={out / 'corpus'}", f"subsets.count={subsets}", f"subsets.seeds={seeds}"],
    )


def make_truth(evaluation: EvaluationConfig, out: Path, first: int, workers: int) -> None:
    """Train checkpoint 1, checkpoint 2 and all runs of the ground truth that are not kept yet."""
    folder, trainer = TruthFolder(str(out), _LOCAL), ContinuedTrainer(evaluation, first)
    fingerprint = locate(evaluation.base().model, _LOCAL).fingerprint()
    folder.begin(trainer.identity(fingerprint), [example.example_id for example in trainer.examples])
    if not (out / "model-1").exists():
        trainer.save_first(str(out / "model-1"))
    missing = [run for run in runs(evaluation) if run not in folder.done()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(_train_run, evaluation.model_dump_json(), str(out), first, run) for run in missing]
        for number, done in enumerate(as_completed(running), 1):
            print(f"trained {done.result()}, {number} of {len(missing)}", flush=True)


def _train_run(evaluation: str, out: str, first: int, run: str) -> str:
    trainer = _trainer(evaluation, first)
    run_once(trainer, TruthFolder(out, _LOCAL), run, EvaluationConfig.model_validate_json(evaluation).base())
    return run


@cache
def _trainer(evaluation: str, first: int) -> ContinuedTrainer:
    torch.set_num_threads(1)
    return ContinuedTrainer(EvaluationConfig.model_validate_json(evaluation), first)


if __name__ == "__main__":
    main()
