"""Ground truth for continued pretraining: queries are attributed at a checkpoint that was trained in two stages.

    python -m benchmarks.quality.continued TESTBED OUT [--share 0.75 --subsets 60 --seeds 2 --workers 2]

TESTBED is a folder of `benchmarks.quality.testbed`. Its corpus is split into two parts. The model is trained on
the first part (checkpoint 1) and then on the second (checkpoint 2, which is attributed). The ground truth trains
every subset in the same way: on its examples of the first part, then on those of the second. OUT stores finished
runs, so the command resumes. `benchmarks.quality.policies` compares update policies on this ground truth.
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
from lorif_core.evaluation.ground_truth import Trainer, TruthFolder, run_names, run_once
from lorif_core.model.checkpoint import locate

_LOCAL = StorageConfig()
FIRST, SECOND = "1-first.jsonl", "2-second.jsonl"


class ContinuedTrainer(Trainer):
    """Trains on examples of the first part of the corpus, then on those of the second.

    Args:
        evaluation: the EVALUATION file.
        first: number of examples in the first part.
    """

    def __init__(self, evaluation: EvaluationConfig, first: int) -> None:
        super().__init__(evaluation)
        self.first = first

    def train_copy(self, indices: Sequence[int], seed: int) -> Any:
        """As `Trainer`, but in two runs of the recipe, each with its own optimiser, warm-up and decay."""
        model = super().train_copy([i for i in indices if i < self.first], seed)
        self.train(model, [i for i in indices if i >= self.first], seed)
        return model

    def identity(self, checkpoint: str) -> dict[str, Any]:
        """As `Trainer`, with the size of the first part."""
        return {**super().identity(checkpoint), "first": self.first}

    def save_first(self, folder: str) -> None:
        """Train and save checkpoint 1."""
        self.save(super().train_copy(range(self.first), 0), folder, _LOCAL)


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
    parser.add_argument("--share", type=float, default=0.75, help="share of the corpus in the first part")
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def split(testbed: Path, out: Path, share: float) -> int:
    """Write the corpus as two files, and return the number of examples in the first."""
    lines = (testbed / "corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    first = round(share * len(lines))
    for name, part in ((FIRST, lines[:first]), (SECOND, lines[first:])):
        path, text = out / "corpus" / name, "".join(part)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return first


def load(testbed: Path, out: Path, subsets: int, seeds: int) -> EvaluationConfig:
    """EVALUATION of the testbed with the split corpus."""
    return load_evaluation(
        testbed / "evaluation.yaml",
        [f"config.corpus.uri={out / 'corpus'}", f"subsets.count={subsets}", f"subsets.seeds={seeds}"],
    )


def make_truth(evaluation: EvaluationConfig, out: Path, first: int, workers: int) -> None:
    """Train checkpoint 1, checkpoint 2 and all runs of the ground truth, except those that are already stored."""
    folder, trainer = TruthFolder(str(out), _LOCAL), ContinuedTrainer(evaluation, first)
    fingerprint = locate(evaluation.base().model, _LOCAL).fingerprint()
    folder.begin(trainer.identity(fingerprint), [example.example_id for example in trainer.examples])
    if not (out / "model-1").exists():
        trainer.save_first(str(out / "model-1"))
    missing = [run for run in run_names(evaluation) if run not in folder.finished_runs()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(_train_run, evaluation.model_dump_json(), str(out), first, run) for run in missing]
        for number, future in enumerate(as_completed(futures), 1):
            print(f"trained {future.result()}, {number} of {len(missing)}", flush=True)


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
