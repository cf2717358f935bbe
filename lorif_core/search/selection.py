"""Data selection: the part of a corpus with the highest or lowest mean influence on target queries.

The mean over queries is one folded query, so that any number of targets costs one scan. What is kept is a float
per row; ids and sources are read again for the rows that are taken.

Shapes: N rows in the order of the scan.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import Terms
from lorif_core.search.part_reader import PartReader
from lorif_core.search.queries import Query, QueryInput, parsed_queries
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.scoring import FoldedQueries, queries_at_once
from lorif_core.storage.filesystem import contact, open_filesystem

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
_MEMORY_GB = 0.25  # of the gradients of some queries


def select(
    index: GenerationReader,
    queries: Sequence[QueryInput] | None,
    fraction: float,
    model: ModelInput,
    terms: Terms,
    *,
    bottom: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows as in `SELECTION_SCHEMA`, in the order of the index; `score` is the mean of the queries' scores.

    Args:
        index: the generation to ask.
        queries: the targets; None takes rows by their self-influence instead.
        fraction: of the rows that are asked, above 0, at most 1; at least one row is taken.
        model: as in `Index.scores`.
        terms: which rows, and their normalisation.
        bottom: the lowest scores instead of the highest. Among equal ones those with the first ids are taken.

    Raises:
        UserError: the fraction is none, or as `Index.scores`.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction is {fraction:g}; it must be above 0 and at most 1")
    if queries is None:
        scores = [part.self_influence(where=terms.where) for part in index.parts]
    else:
        scores = _mean_scores(index, queries, model, terms)
    signed = [-found if bottom else found for found in scores]
    taken = best_share(signed, fraction, lambda places: _ids_at(index, places, terms.where))
    return _rows(index, scores, taken, terms.where)


def _rows(
    index: GenerationReader, scores: Sequence[np.ndarray], taken: Sequence[np.ndarray], where: str | None
) -> Iterator[pa.RecordBatch]:
    for part, found, chosen in zip(index.parts, scores, taken, strict=True):
        start = 0
        for batch in part.described(SELECTION_SCHEMA.names[:-1], where):
            some = slice(start, start + batch.num_rows)
            start += batch.num_rows
            columns = [*batch.select(SELECTION_SCHEMA.names[:-1]).columns, pa.array(found[some], pa.float32())]
            rows = pa.RecordBatch.from_arrays(columns, schema=SELECTION_SCHEMA)
            if chosen[some].any():
                yield rows.filter(pa.array(chosen[some]))


def check_new_file(out: str, storage: StorageConfig) -> None:
    """Refuse an output file that is there: nothing of the user's is overwritten."""
    fs, path = open_filesystem(out, storage)
    with contact(out):
        if fs.exists(path):
            raise UserError(f"--out {out} is there already; name a new file")


def write_selection(
    batches: Iterable[pa.RecordBatch], out: str, storage: StorageConfig
) -> tuple[int, float, float]:
    """Stream rows into a parquet file, which appears when all are in it; (rows, lowest, highest score)."""
    fs, path = open_filesystem(out, storage)
    rows, lowest, highest = 0, np.inf, -np.inf
    with contact(out, "write"):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with fs.transaction, fs.open(path, "wb") as file, pq.ParquetWriter(file, SELECTION_SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
                scores = batch.column("score").to_numpy()
                rows += len(scores)
                lowest, highest = min(lowest, float(scores.min())), max(highest, float(scores.max()))
    return rows, lowest, highest


def with_ids(part: PartReader, values: np.ndarray, where: str | None) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids beside numbers of a part's rows that are in the order of its scan."""
    start = 0
    for batch in part.described(["example_id"], where):
        yield batch.column("example_id").to_pylist(), values[start : start + batch.num_rows]
        start += batch.num_rows


def _mean_scores(
    index: GenerationReader, queries: Sequence[QueryInput], model: ModelInput, terms: Terms
) -> list[np.ndarray]:
    """Per part (N,) float32 means over queries of their scores."""
    folded = index.for_parts(_mean_query(index, parsed_queries(queries), model, terms))
    found = []
    for part, query in zip(index.parts, folded, strict=True):
        blocks = [scores_QB[0].copy() for _, scores_QB in part.scored(query, terms=terms)]
        found.append(np.concatenate(blocks) if blocks else np.zeros(0, np.float32))
    return found


def _mean_query(
    index: GenerationReader, queries: Sequence[Query], model: ModelInput, terms: Terms
) -> list[FoldedQueries]:
    """For every checkpoint that is asked, one folded query whose scores are the means of all scores."""
    encoders = index.encoders(model)
    layers = index.parts[-1].spec.layers
    size = queries_at_once(layers, _MEMORY_GB)
    folded = []
    for part, encoder in zip(index.leaders, encoders, strict=True):
        means = [torch.zeros(1, layer.dim, dtype=torch.float64) for layer in layers]
        losses = 0.0
        for start in range(0, len(queries), size):
            gradients = encoder.gradients(queries[start : start + size])
            losses += float(gradients.losses.sum()) / len(queries)
            scale_Q = part.scale(gradients, terms) / len(queries)
            for mean, gradient in zip(means, gradients.layers, strict=True):
                mean += scale_Q @ gradient.double()
        mean_gradient = type(gradients)(np.array([losses], np.float32), [mean.float() for mean in means])
        folded.append(part.plain_fold(mean_gradient))
    return folded


def best_share(
    scores: Sequence[np.ndarray], fraction: float, ids_at: Callable[[np.ndarray], Sequence[str]]
) -> list[np.ndarray]:
    """Which rows have the highest scores, bool; `scores`, and the answer, in parts.

    `ids_at` names rows by their places in all parts together, ascending; it is asked for ties at the end only.
    """
    whole = np.concatenate(scores)
    count = max(1, round(fraction * len(whole)))
    least = np.partition(whole, len(whole) - count)[len(whole) - count]
    taken = whole > least
    tied, missing = np.flatnonzero(whole == least), count - int(taken.sum())
    if missing < len(tied):
        named = sorted(zip(ids_at(tied), tied.tolist(), strict=True))
        tied = np.array([place for _, place in named[:missing]])
    taken[tied] = True
    return np.split(taken, np.cumsum([len(found) for found in scores])[:-1])


def _ids_at(index: GenerationReader, places: np.ndarray, where: str | None) -> list[str]:
    """Ids of rows by their place in the scan, ascending."""
    names: list[str] = []
    start = 0
    for part in index.parts:
        for batch in part.described(["example_id"], where):
            here = places[(places >= start) & (places < start + batch.num_rows)] - start
            names += batch.column("example_id").take(pa.array(here)).to_pylist()
            start += batch.num_rows
    return names
