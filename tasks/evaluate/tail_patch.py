"""The steps of `lorif evaluate tail-patch`: one training step on the proponents of every query and method."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lorif_core.errors import LorifError
from lorif_core.evaluation.config import RANDOM, EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.inputs import EvaluationInputs, load_inputs
from lorif_core.evaluation.results import MethodResults, MetricValues, csv_file, json_file, tabulate, write_files
from lorif_core.evaluation.tail_patch import Patcher, top_columns
from lorif_core.gradients.projection import counter_generator
from lorif_core.storage.objects import Objects
from tasks.artifacts import show_table
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import model_settings
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.workers.start import start

_QUERIES_PER_CALL = 16


@dataclass(frozen=True, slots=True)
class _QueryBatch:
    """Consecutive queries of a method, from row `first`, each with the columns of its proponents."""

    method: str
    first: int
    columns: tuple[tuple[int, ...], ...]


class PatchRole:
    """Loads the attributed checkpoint, corpus and queries once; every step starts from that checkpoint."""

    def __init__(self, evaluation: EvaluationConfig, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluation, self._model = evaluation, model
        self._inputs: EvaluationInputs | None = None
        self._patcher: Patcher | None = None

    def gains(self, batch: _QueryBatch) -> list[float]:
        """The gain of each query of a batch; see `Patcher.gain`."""
        if self._inputs is None or self._patcher is None:  # not in __init__: see `TruthRole`
            self._inputs = load_inputs(self._evaluation, self._model)
            self._patcher = Patcher(self._inputs.loaded.model, self._evaluation.tail_patch.step())
        examples, queries = self._inputs.examples, self._inputs.queries
        return [
            self._patcher.gain([examples[column] for column in columns], queries[batch.first + row])
            for row, columns in enumerate(batch.columns)
        ]


def score_random(shape: tuple[int, int]) -> MethodResults:
    """Random scores (Q, N), the same in every run; their proponents are a baseline."""
    return MethodResults(
        RANDOM, counter_generator(0, "tail-patch/random").random(shape, np.float32), None, {}, 0.0
    )


@task("patch")
def patch_queries(evaluation: EvaluationConfig, out: str, results: list[MethodResults]) -> dict[str, list[float]]:
    """Gains (Q) of every method in the order of the queries; gains that `out` already has are not computed again.

    Gains are stored with a digest of proponents and step, so if either changes they are computed again.

    Raises:
        LorifError: a step failed, or led to a loss that is not finite.
    """
    objects = Objects(out, evaluation.base().storage)
    top_k = evaluation.tail_patch.top_k
    columns = {method.name: top_columns(method.scores, top_k).tolist() for method in results}
    digests = {name: _digest(evaluation, proponents) for name, proponents in columns.items()}
    gains: dict[str, list[float]] = {}
    for name in columns:
        stored = objects.get(_object(name))
        if stored is not None and stored.get("of") == digests[name]:
            gains[name] = stored["gains"]
    run_log().info("%d of %d methods to patch", len(columns) - len(gains), len(columns))
    missing = {name: proponents for name, proponents in columns.items() if name not in gains}
    for name, method_gains in _patch_methods(evaluation, out, missing):
        objects.put(_object(name), {"of": digests[name], "gains": method_gains})
        gains[name] = method_gains
    return gains


def _patch_methods(
    evaluation: EvaluationConfig, out: str, columns: dict[str, list[list[int]]]
) -> Iterator[tuple[str, list[float]]]:
    """Compute gains on all workers; yields each method as soon as all its queries are done."""
    batches = [batch for name, proponents in columns.items() for batch in _batches(name, proponents)]
    if not batches:
        return
    config = evaluation.base()
    model = TruthFolder(out, config.storage).model
    done: dict[str, dict[int, list[float]]] = {name: {} for name in columns}
    with cluster(config.compute) as resources:
        count = min(resources.workers, len(batches))
        with (
            Workers(
                lambda: start(PatchRole, resources, evaluation, model, with_model=True),
                count,
                model_settings(config),
            ) as workers,
            Progress("patch queries", sum(len(batch.columns) for batch in batches)) as progress,
        ):
            for outcome in workers.run(batches, lambda host, batch: host.call("gains", batch)):
                if isinstance(outcome, Failed):
                    raise LorifError(f"patching queries of {outcome.item.method} failed: {outcome.cause}")
                batch: _QueryBatch = outcome.item
                gains = done[batch.method]
                gains[batch.first] = outcome.result
                progress.advance(len(batch.columns))
                if sum(map(len, gains.values())) == len(columns[batch.method]):
                    yield batch.method, [gain for first in sorted(gains) for gain in gains[first]]


def _batches(name: str, columns: Sequence[Sequence[int]]) -> Iterator[_QueryBatch]:
    for first in range(0, len(columns), _QUERIES_PER_CALL):
        yield _QueryBatch(name, first, tuple(map(tuple, columns[first : first + _QUERIES_PER_CALL])))


def _object(method: str) -> str:
    return f"tail-patch/{method}.json"


def _digest(evaluation: EvaluationConfig, columns: Sequence[Sequence[int]]) -> str:
    inputs = [asdict(evaluation.tail_patch.step()), columns]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


@task("write tail-patch")
def write_tail_patch(
    evaluation: EvaluationConfig, out: str, results: list[MethodResults], gains: dict[str, list[float]]
) -> dict[str, Any]:
    """Write the mean gains of every method, with intervals, to `out`; returns the summary."""
    scored = np.array([query.scored for query in load_inputs(evaluation).queries])
    totals = {name: np.array(method_gains) for name, method_gains in gains.items()}
    per_token = {name: total / scored for name, total in totals.items()}
    figures = [
        MetricValues({"measure": "log-probability"}, totals),
        MetricValues({"measure": "log-probability per token"}, per_token),
    ]
    rows, differences = tabulate(results, figures, evaluation.compared(totals))
    queries, examples = results[0].scores.shape
    summary = {
        "queries": queries, "examples": examples, **evaluation.tail_patch.model_dump(), "methods": rows,
        "differences": differences,
    }  # fmt: skip
    files = {"tail-patch.csv": csv_file(rows), "tail-patch.json": json_file(summary)}
    write_files(out, evaluation.base().storage, files)
    show_table(
        key="tail-patch", table=rows, description="Gain of the queries' log-probability after a step on proponents"
    )
    return summary
