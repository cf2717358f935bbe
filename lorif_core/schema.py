"""The columns of the tables, readable with plain lancedb, and rows <-> Arrow.

`factors`: one row per training example. `codes` is one wide fixed-size column for all layers (a column per
layer reads ten times slower from object storage); `scales` holds one float32 a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from lorif_core.curvature import LayerCurvature
from lorif_core.factors import CodeLayout
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tokenise import Example

SPEC_KEY = b"lorif.spec"
_COMPONENTS_PER_BATCH = 64  # of eigenvectors, which are as long as d1 d2
_ARROW = {"float16": pa.float16(), "float32": pa.float32()}


def factors_schema(spec: IndexSpec) -> pa.Schema:
    """Schema of `factors`, with the spec as metadata so that a half-built index still knows what it is."""
    layout = CodeLayout(spec.layers, spec.code)
    fields = [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("spec", pa.string(), nullable=False),
    ]
    if spec.store_text:
        fields.append(pa.field("text", pa.string()))
    fields += [
        pa.field("codes", pa.list_(_ARROW[spec.code.dtype], layout.width), nullable=False),
        pa.field("scales", pa.list_(pa.float32(), len(spec.layers)), nullable=False),
    ]
    return pa.schema(fields, metadata={SPEC_KEY: spec.to_json().encode()})


CURVATURE_SCHEMA = pa.schema(
    [
        pa.field("curvature", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("layer_index", pa.int32(), nullable=False),
        pa.field("component", pa.int32(), nullable=False),
        pa.field("sigma2", pa.float64(), nullable=False),
        pa.field("damping", pa.float64(), nullable=False),
        pa.field("outside", pa.float64(), nullable=False),
        pa.field("trace", pa.float64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

GENERATIONS_SCHEMA = pa.schema(
    [
        pa.field("generation", pa.int64(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("factors_version", pa.int64(), nullable=False),
        pa.field("curvature_version", pa.int64(), nullable=False),
        pa.field("curvature", pa.string(), nullable=False),
        pa.field("curvature_kind", pa.string(), nullable=False),
        pa.field("spec", pa.string(), nullable=False),
        pa.field("spec_json", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("model_path", pa.string(), nullable=False),
        pa.field("model_revision", pa.string()),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("coverage_json", pa.string(), nullable=False),
        pa.field("skipped_json", pa.string(), nullable=False),
        pa.field("timings_json", pa.string(), nullable=False),
        pa.field("quarantined_json", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Storable rows of one shard, in the order of the file; a shard may come in several parts."""

    examples: Sequence[Example]
    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


def to_table(rows: ShardRows, shard: ShardRef, spec: IndexSpec) -> pa.Table:
    """Rows (n, W) codes and (n, L) scales as an Arrow table of `factors_schema(spec)`."""
    schema = factors_schema(spec)
    n = len(rows.examples)
    columns: dict[str, object] = {
        "example_id": [example.example_id for example in rows.examples],
        "shard": [shard.key] * n,
        "uri": [shard.uri] * n,
        "row": [example.row for example in rows.examples],
        "tokens": [len(example.input_ids) for example in rows.examples],
        "loss": rows.losses,
        "content_hash": [example.content_hash for example in rows.examples],
        "checkpoint": [spec.checkpoint] * n,
        "spec": [spec.hash] * n,
        "text": [example.text for example in rows.examples],
        "codes": _fixed_size(rows.codes),
        "scales": _fixed_size(rows.scales),
    }
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _fixed_size(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix(column: pa.Array) -> torch.Tensor:
    """A fixed-size-list column as a float32 (rows, width) tensor, copied once."""
    flat = column.flatten().to_numpy(zero_copy_only=True)
    return torch.from_numpy(flat.astype(np.float32).reshape(len(column), -1))


def curvature_batches(
    curvature_id: str, layers: dict[int, tuple[str, LayerCurvature]]
) -> Iterator[pa.RecordBatch]:
    """Fitted layers (by number, with their names) as rows of `CURVATURE_SCHEMA`, one per component."""
    for index, (name, fitted) in layers.items():
        vectors = fitted.basis.T.contiguous().numpy()
        for start in range(0, len(vectors), _COMPONENTS_PER_BATCH):
            part = vectors[start : start + _COMPONENTS_PER_BATCH]
            n = len(part)
            offsets = pa.array(range(0, (n + 1) * part.shape[1], part.shape[1]), type=pa.int32())
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([curvature_id] * n),
                    pa.array([name] * n),
                    pa.array([index] * n, type=pa.int32()),
                    pa.array(range(start, start + n), type=pa.int32()),
                    pa.array(fitted.sigma2[start : start + n].numpy()),
                    pa.array([fitted.damping] * n),
                    pa.array([fitted.outside] * n),
                    pa.array([fitted.trace] * n),
                    pa.array([fitted.rows] * n, type=pa.int64()),
                    pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1))),
                ],
                schema=CURVATURE_SCHEMA,
            )


def layer_curvature(table: pa.Table) -> LayerCurvature:
    """The rows of one layer, in order of component, as it was fitted."""
    flat = table.column("vector").combine_chunks().flatten().to_numpy()
    vectors = torch.from_numpy(flat.copy()).view(table.num_rows, -1)
    first = table.slice(0, 1).to_pylist()[0]
    return LayerCurvature(
        torch.from_numpy(table.column("sigma2").to_numpy().copy()),
        vectors.T,
        first["trace"],
        first["rows"],
        first["damping"],
        first["outside"],
    )
