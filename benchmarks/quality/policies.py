"""LDS and cost of every `update.policy` at a checkpoint that was trained further.

    python -m benchmarks.quality.policies TESTBED OUT [--methods balanced compact ... --result FOLDER]

OUT is the output of `benchmarks.quality.continued` with the same arguments. Every method builds an index of the
first part of the corpus at checkpoint 1. Then the second part is added, and each policy updates a copy of the
index to checkpoint 2, with `max_drift` 1 so that `auto` keeps the old rows. `stale` is an index of all rows at
checkpoint 1, with queries at checkpoint 1; `rebuild` is an index of all rows at checkpoint 2. Seconds are measured
around the product's flows, in one process with one Ray cluster.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.continued import FIRST, SECOND, load
from benchmarks.run_record import write_result
from flows.build import build
from flows.update import update
from lorif_core.config import Config, StorageConfig
from lorif_core.evaluation.bootstrap import Interval
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.lds import bootstrap
from lorif_core.search.index import Index
from lorif_core.search.queries import Query, read_queries
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.cluster import cluster

_LOCAL = StorageConfig()
_METHODS = ("balanced", "compact", "quality", "LoRIF f4 c1, dense query")
_SAMPLE_SHARE = 0.1  # of 768 rows; the default of 0.02 would sample too few


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out.resolve()
    evaluation = load(arguments.testbed.resolve(), out, arguments.subsets, arguments.seeds)
    result = {}
    with cluster(evaluation.base().compute):
        for name in arguments.methods:
            result[name] = Policies(evaluation, out, name).measure()
            print(name, json.dumps(result[name], indent=1), flush=True)
    if arguments.result:
        write_result(arguments.result / "policies.json", result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(_METHODS))
    parser.add_argument("--result", type=Path)
    return parser.parse_args()


class Policies:
    """The indexes of one method, in a folder that is emptied first.

    Args:
        evaluation: EVALUATION of the testbed with the split corpus.
        out: folder with both checkpoints, the corpus and the ground truth.
        name: name of the method.
    """

    def __init__(self, evaluation: EvaluationConfig, out: Path, name: str) -> None:
        self._evaluation, self._out, self._name = evaluation, out, name
        self._folder = folder_of(out, name)
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "corpus").mkdir(parents=True)
        self._queries: list[Query] = read_queries(evaluation.queries, _LOCAL)

    def measure(self) -> dict[str, Any]:
        """Build all indexes; LDS and seconds by policy."""
        shutil.copy(self._out / "corpus" / FIRST, self._folder / "corpus")
        self._make("first", 1, build)
        shutil.copy(self._out / "corpus" / SECOND, self._folder / "corpus")
        indexes = {"stale": self._make("stale", 1, build)}
        for policy in ("append", "auto", "refresh"):
            shutil.copytree(self._folder / "first", self._folder / policy)
            indexes[policy] = self._make(policy, 2, update)
        indexes["rebuild"] = self._make("rebuild", 2, build)
        ids, truth = TruthFolder(str(self._out), _LOCAL).read(self._evaluation)
        scores = {name: self._scores(config, generation, ids) for name, (config, generation, _) in indexes.items()}
        pairs = [(name, "rebuild") for name in indexes if name != "rebuild"]
        singles, paired = bootstrap(scores, truth, pairs)
        return {
            name: {
                "lds": interval(singles[name]),
                "minus_rebuild": interval(paired[name, "rebuild"]) if (name, "rebuild") in paired else None,
                "seconds": round(seconds, 1),
                "older_rows": generation.changes.get("older_rows", []),
            }
            for name, (_, generation, seconds) in indexes.items()
        }

    def _make(
        self, name: str, checkpoint: int, flow: Callable[[Config], Generation]
    ) -> tuple[Config, Generation, float]:
        model = str(self._out / ("model-1" if checkpoint == 1 else "model"))
        config = self._evaluation.method(self._name, str(self._folder / name), model)
        policy = name if name in ("append", "auto", "refresh") else "auto"
        section = config.update.model_copy(
            update={"policy": policy, "max_drift": 1.0, "sample_share": _SAMPLE_SHARE}
        )
        corpus = config.corpus.model_copy(update={"uri": str(self._folder / "corpus")})
        config = config.model_copy(update={"update": section, "corpus": corpus})
        started = time.perf_counter()
        generation = flow(config)
        return config, generation, time.perf_counter() - started

    def _scores(self, config: Config, generation: Generation, ids: list[str]) -> np.ndarray:
        index = Index(Store(config.index, config.storage), generation)
        example_ids, scores_QN = index.scores(self._queries, config.model)
        columns = {example_id: column for column, example_id in enumerate(example_ids)}
        return scores_QN[:, [columns[example_id] for example_id in ids]]


def folder_of(out: Path, name: str) -> Path:
    """Folder of a method's indexes."""
    return out / "policies" / "".join(letter if letter.isalnum() else "-" for letter in name)


def interval(estimate: Interval) -> list[float]:
    """Value and bounds of the 95 % interval, rounded."""
    return [round(float(value), 4) for value in (estimate.value, estimate.low, estimate.high)]


if __name__ == "__main__":
    main()
