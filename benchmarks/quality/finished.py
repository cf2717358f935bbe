"""A testbed's EVALUATION without its methods, and the finished part of its ground truth.

The research modules have methods of their own, and compare them before the last training run has ended.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml

from lorif_core.config import StorageConfig
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder, run_name, subset
from lorif_core.evaluation.lds import Truth


def result_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments TESTBED DUMP RESULT."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("testbed", "dump", "result"):
        parser.add_argument(name, type=Path)
    return parser


def testbed_evaluation(testbed: Path) -> EvaluationConfig:
    """EVALUATION of a testbed, without methods, whose keys may be those of another release."""
    content = yaml.safe_load((testbed / "evaluation.yaml").read_text(encoding="utf-8"))
    return EvaluationConfig(**{**content, "methods": {}, "compare": ()})


def finished_truth(testbed: Path) -> Truth:
    """Truth of the subsets of which every seed is finished, else of those of which one is."""
    evaluation = testbed_evaluation(testbed)
    folder = TruthFolder(str(testbed / "out"), StorageConfig())
    done, ids, subsets = folder.finished_runs(), folder.ids(), evaluation.subsets
    by_seed = [[n for n in range(subsets.count) if run_name(n, seed) in done] for seed in range(subsets.seeds)]
    complete = [n for n in by_seed[0] if all(n in numbers for numbers in by_seed)]
    seeds = subsets.seeds if len(complete) == subsets.count else 1
    numbers = complete if seeds > 1 else by_seed[0]
    members = np.zeros((len(numbers), len(ids)), dtype=bool)
    for row, number in enumerate(numbers):
        members[row, subset(len(ids), subsets.share, number)] = True
    losses = [[folder._losses(run_name(number, seed)) for number in numbers] for seed in range(seeds)]
    return Truth(members, np.array(losses).mean(axis=0), seeds)
