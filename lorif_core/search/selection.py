"""Data selection: the fraction of a corpus with the highest or lowest mean influence on target queries.

The mean over queries is a single folded query, so any number of targets costs one scan. Memory is a float per row;
ids and sources are read again for the selected rows.

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
from lorif_core.search.options import SearchOptions
from lorif_core.search.part_reader import PartReader
from lorif_core.search.queries import Query, QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput, QueryGradients
from lorif_core.search.scoring import FoldedQueries, queries_at_once
from lorif_core.storage.filesystem import open_filesystem, storage_errors

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
_MEMORY_GB = 0.25  # for the gradients of a batch of queries


def select(
    index: GenerationReader,
    queries: Sequence[QueryInput] | None,
    fraction: float,
    model: ModelInput,
    options: SearchOptions,
    *,
    bottom: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows as in `SELECTION_SCHEMA`, in the order of the index; `score` is the mean of the queries' scores.

    Args:
        index: the generation to search.
        queries: the targets; None selects rows by their self-influence instead.
        fraction: fraction of the matching rows, above 0 and at most 1; at least one row is selected.
        model: as in `Index.scores`.
        options: which rows, and their normalisation.
        bottom: select the lowest scores instead of the highest. Ties are broken by ascending id.

    Raises:
        UserError: the fraction is out of range, or as in `Index.scores`.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction is {fraction:g}; it must be above 0 and at most 1")
    index.store.rows.check_descriptions(index.generation.factors_version)
    if queries is None:
        scores = [part.self_influence(where=options.condition) for part in index.parts]
    else:
        scores = _mean_scores(index, queries, model, options)
    signed = [-part_scores if bottom else part_scores for part_scores in scores]
    selected = best_fraction(signed, fraction, lambda positions: _ids_at(index, positions, options.condition))
    return _selected_rows(index, scores, selected, options.condition)


def _selected_rows(
    index: GenerationReader, scores: Sequence[np.ndarray], selected: Sequence[np.ndarray], where: str | None
) -> Iterator[pa.RecordBatch]:
    for part, part_scores, part_selected in zip(index.parts, scores, selected, strict=True):
        start = 0
        for batch in part.metadata(SELECTION_SCHEMA.names[:-1], where):
            rows = slice(start, start + batch.num_rows)
            start += batch.num_rows
            described = batch.select(SELECTION_SCHEMA.names[:-1]).columns
            columns = [*described, pa.array(part_scores[rows], pa.float32())]
            scored = pa.RecordBatch.from_arrays(columns, schema=SELECTION_SCHEMA)
            if part_selected[rows].any():
                yield scored.filter(pa.array(part_selected[rows]))


def check_new_file(out: str, storage: StorageConfig) -> None:
    """Raise UserError if the output file exists, so that no file of the user is overwritten."""
    fs, path = open_filesystem(out, storage)
    with storage_errors(out):
        if fs.exists(path):
            raise UserError(f"--out {out} exists already; name a new file")


def write_selection(
    batches: Iterable[pa.RecordBatch], out: str, storage: StorageConfig
) -> tuple[int, float, float]:
    """Stream rows into a parquet file that appears once complete; returns (rows, lowest, highest score)."""
    fs, path = open_filesystem(out, storage)
    rows, lowest, highest = 0, np.inf, -np.inf
    with storage_errors(out, "write"):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with fs.transaction, fs.open(path, "wb") as file, pq.ParquetWriter(file, SELECTION_SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
                scores = batch.column("score").to_numpy()
                rows += len(scores)
                lowest, highest = min(lowest, float(scores.min())), max(highest, float(scores.max()))
    return rows, lowest, highest


def with_ids(part: PartReader, values: np.ndarray, where: str | None) -> Iterator[tuple[list[str], np.ndarray]]:
    """Batches of ids and values, for values of a part's rows in the order of its scan."""
    start = 0
    for batch in part.metadata(["example_id"], where):
        yield batch.column("example_id").to_pylist(), values[start : start + batch.num_rows]
        start += batch.num_rows


def _mean_scores(
    index: GenerationReader, queries: Sequence[QueryInput], model: ModelInput, options: SearchOptions
) -> list[np.ndarray]:
    """Mean scores over the queries, (N,) float32 for each part."""
    folded = index.for_all_parts(_mean_query(index, parse_queries(queries), model, options))
    scores = []
    for part, query in zip(index.parts, folded, strict=True):
        blocks = [scores_QB[0].copy() for _, scores_QB in part.scored_blocks(query, options=options)]
        scores.append(np.concatenate(blocks) if blocks else np.zeros(0, np.float32))
    return scores


def _mean_query(
    index: GenerationReader, queries: Sequence[Query], model: ModelInput, options: SearchOptions
) -> list[FoldedQueries]:
    """One folded query for each part at its own checkpoint; its scores are the means of the queries' scores."""
    encoders = index.encoders(model)
    layers = index.parts[-1].spec.layers
    size = queries_at_once(layers, _MEMORY_GB)
    folded = []
    for part, encoder in zip(index.own_checkpoint_parts, encoders, strict=True):
        means = [torch.zeros(1, layer.dim, dtype=torch.float64) for layer in layers]
        losses = 0.0
        for start in range(0, len(queries), size):
            gradients = encoder.gradients(queries[start : start + size])
            losses += float(gradients.losses.sum()) / len(queries)
            scale_Q = part.scale(gradients, options) / len(queries)
            for mean, gradient in zip(means, gradients.layers, strict=True):
                mean += scale_Q @ gradient.double()
        mean_gradient = QueryGradients(np.array([losses], np.float32), [mean.float() for mean in means], [None])
        folded.append(part.fold_unscaled(mean_gradient))
    return folded


def best_fraction(
    scores: Sequence[np.ndarray], fraction: float, ids_at: Callable[[np.ndarray], Sequence[str]]
) -> list[np.ndarray]:
    """Masks, bool, of the rows with the highest scores; scores and masks are given part by part.

    `ids_at` returns the ids of rows, given their ascending positions in all parts together. It is called only for
    rows that tie with the last selected score.
    """
    all_scores = np.concatenate(scores)
    count = max(1, round(fraction * len(all_scores)))
    lowest = np.partition(all_scores, len(all_scores) - count)[len(all_scores) - count]
    selected = all_scores > lowest
    tied, missing = np.flatnonzero(all_scores == lowest), count - int(selected.sum())
    if missing < len(tied):
        by_id = sorted(zip(ids_at(tied), tied.tolist(), strict=True))
        tied = np.array([position for _, position in by_id[:missing]])
    selected[tied] = True
    return np.split(selected, np.cumsum([len(part_scores) for part_scores in scores])[:-1])


def _ids_at(index: GenerationReader, positions: np.ndarray, where: str | None) -> list[str]:
    """Ids of rows, given their ascending positions in the scan."""
    ids: list[str] = []
    start = 0
    for part in index.parts:
        for batch in part.metadata(["example_id"], where):
            in_batch = positions[(positions >= start) & (positions < start + batch.num_rows)] - start
            ids += batch.column("example_id").take(pa.array(in_batch)).to_pylist()
            start += batch.num_rows
    return ids
