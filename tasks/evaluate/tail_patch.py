"""The steps of `lorif evaluate tail-patch`: one step of training on the proponents of every query and method."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import torch
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.errors import LorifError
from lorif_core.evaluation.config import RANDOM, EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.inputs import Material, load_material
from lorif_core.evaluation.results import Figure, Measured, csv_file, json_file, tabulate, write_files
from lorif_core.evaluation.tail_patch import Patcher, top_columns
from lorif_core.gradients.projection import counter_generator
from lorif_core.storage.objects import Objects
from tasks.actors import start
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress

_QUERIES_PER_CALL = 16


@dataclass(frozen=True, slots=True)
class _Part:
    """Some queries of a method, from row `first`, each with the columns of its proponents."""

    method: str
    first: int
    columns: tuple[tuple[int, ...], ...]


@ray.remote
class PatchActor:
    """Loads the attributed checkpoint, corpus and queries once and takes one step after another from it."""

    def __init__(self, evaluation: EvaluationConfig, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluation, self._model = evaluation, model
        self._material: Material | None = None
        self._patcher: Patcher | None = None

    def gains(self, part: _Part) -> list[float]:
        """See `Patcher.gain`; of each query of the part."""
        if self._material is None or self._patcher is None:  # not in __init__: see `TruthActor`
            self._material = load_material(self._evaluation, self._model)
            self._patcher = Patcher(self._material.loaded.model, self._evaluation.tail_patch.step())
        examples, queries = self._material.examples, self._material.queries
        return [
            self._patcher.gain([examples[column] for column in columns], queries[part.first + row])
            for row, columns in enumerate(part.columns)
        ]


def score_random(shape: tuple[int, int]) -> Measured:
    """Scores (Q, N) that mean nothing: their proponents are examples drawn at random, the same every time."""
    return Measured(RANDOM, counter_generator(0, "tail-patch/random").random(shape, np.float32), None, {}, 0.0)


@task(name="patch", cache_policy=NO_CACHE)
def patch_queries(evaluation: EvaluationConfig, out: str, measured: list[Measured]) -> dict[str, list[float]]:
    """Gains (Q) of every method in the order of the queries; those that are kept in `out` are not taken again.

    A method's gains are kept with what they are of, so other proponents or another step are patched anew.

    Raises:
        LorifError: a step failed, or made a loss that is not finite.
    """
    objects = Objects(out, evaluation.base().storage)
    top_k = evaluation.tail_patch.top_k
    columns = {method.name: top_columns(method.scores, top_k).tolist() for method in measured}
    names = {name: _digest(evaluation, chosen) for name, chosen in columns.items()}
    gains: dict[str, list[float]] = {}
    for name in columns:
        kept = objects.get(_object(name))
        if kept is not None and kept.get("of") == names[name]:
            gains[name] = kept["gains"]
    get_run_logger().info("%d of %d methods to patch", len(columns) - len(gains), len(columns))
    missing = {name: chosen for name, chosen in columns.items() if name not in gains}
    for name, found in _patched(evaluation, out, missing):
        objects.put(_object(name), {"of": names[name], "gains": found})
        gains[name] = found
    return gains


def _patched(
    evaluation: EvaluationConfig, out: str, columns: dict[str, list[list[int]]]
) -> Iterator[tuple[str, list[float]]]:
    """Each method as soon as all its queries are done."""
    parts = [part for name, chosen in columns.items() for part in _parts(name, chosen)]
    if not parts:
        return
    config = evaluation.base()
    model = TruthFolder(out, config.storage).model
    done: dict[str, dict[int, list[float]]] = {name: {} for name in columns}
    with cluster(config.compute) as resources:
        count = min(resources.workers, len(parts))
        with (
            Workers(lambda: start(PatchActor, resources, evaluation, model, with_model=True), count) as workers,
            Progress("patch queries", sum(len(part.columns) for part in parts)) as progress,
        ):
            for outcome in workers.run(parts, lambda actor, part: actor.gains.remote(part)):
                if isinstance(outcome, Failed):
                    raise LorifError(f"patching queries of {outcome.item.method} failed: {outcome.cause}")
                part: _Part = outcome.item
                done[part.method][part.first] = outcome.result
                progress.advance(len(part.columns))
                if sum(map(len, done[part.method].values())) == len(columns[part.method]):
                    found = done[part.method]
                    yield part.method, [gain for first in sorted(found) for gain in found[first]]


def _parts(name: str, columns: Sequence[Sequence[int]]) -> Iterator[_Part]:
    for first in range(0, len(columns), _QUERIES_PER_CALL):
        yield _Part(name, first, tuple(map(tuple, columns[first : first + _QUERIES_PER_CALL])))


def _object(method: str) -> str:
    return f"tail-patch/{method}.json"


def _digest(evaluation: EvaluationConfig, columns: Sequence[Sequence[int]]) -> str:
    whole = [asdict(evaluation.tail_patch.step()), columns]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


@task(name="write tail-patch", cache_policy=NO_CACHE)
def write_tail_patch(
    evaluation: EvaluationConfig, out: str, measured: list[Measured], gains: dict[str, list[float]]
) -> dict[str, Any]:
    """Mean gains of every method, with intervals, into `out`; the summary."""
    scored = np.array([query.scored for query in load_material(evaluation).queries])
    totals = {name: np.array(found) for name, found in gains.items()}
    per_token = {name: total / scored for name, total in totals.items()}
    figures = [
        Figure({"measure": "log-probability"}, totals),
        Figure({"measure": "log-probability per token"}, per_token),
    ]
    rows, differences = tabulate(measured, figures, evaluation.compared(totals))
    queries, examples = measured[0].scores.shape
    summary = {
        "queries": queries, "examples": examples, **evaluation.tail_patch.model_dump(), "methods": rows,
        "differences": differences,
    }  # fmt: skip
    files = {"tail-patch.csv": csv_file(rows), "tail-patch.json": json_file(summary)}
    write_files(out, evaluation.base().storage, files)
    create_table_artifact(
        key="tail-patch", table=rows, description="Gain of the queries' log-probability after a step on proponents"
    )
    return summary
