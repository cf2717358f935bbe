"""The schemas of the tables, which plain lancedb can read, and the conversion between rows and Arrow.

`factors` has one row per training example. `codes` is one wide fixed-size column for all layers, because a column
per layer reads ten times slower from object storage. `scales` has one number per layer and term. Scales of float
codes are float32. Other codes are so small that scales are a good part of a row, so theirs are float16, to be
multiplied by the row's `magnitude`. Texts of a file are much alike, so they are compressed. In the file format of
`factors`, columns that are constant in a shard then take less than a byte a row.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from lorif_core.corpus.tokenise import Example
from lorif_core.corpus.turns import turns_to_json
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.quantisation import is_float
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.checksums import (
    CHECKSUM_FIELD,
    CHECKSUMS,
    LAST_COMPONENT,
    TURNS,
    checksums_field,
    factors_checksums,
    with_checksum,
)

SPEC_KEY = b"lorif.spec"
_COMPONENTS_PER_BATCH = 64  # eigenvectors in a batch; each has d1 d2 elements
_ARROW_TYPES = {
    "float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "int4": pa.uint8(), "sign": pa.uint8(),
}  # fmt: skip


_COMPRESSED = {"lance-encoding:compression": "zstd", "lance-encoding:minichunk-size": "16384"}


def factors_schema(spec: IndexSpec) -> pa.Schema:
    """Schema of `factors`. The spec is in its metadata, so that an unpublished index has a spec, too."""
    layout = CodeLayout(spec.layers, spec.code)
    fields = [
        _compressed("example_id", pa.string()),
        _compressed("shard", pa.string()),
        _compressed("uri", pa.string()),
        _compressed("row", pa.int64()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        _compressed("content_hash", pa.string()),
        _compressed("checkpoint", pa.string()),
        _compressed("spec", pa.string()),
    ]
    if spec.store_text:
        fields.append(pa.field("text", pa.string(), metadata=_COMPRESSED))
        if spec.tokenisation.chat is not None:
            fields.append(pa.field(TURNS, pa.string(), metadata=_COMPRESSED))
    fields.append(pa.field("codes", pa.list_(_ARROW_TYPES[spec.code.dtype], layout.stored_width), nullable=False))
    if is_float(spec.code.dtype):
        fields.append(pa.field("scales", pa.list_(pa.float32(), layout.scales), nullable=False))
    else:
        fields.append(pa.field("scales", pa.list_(pa.float16(), layout.scales), nullable=False))
        fields.append(pa.field("magnitude", pa.float32(), nullable=False))
    fields.append(checksums_field(text=spec.store_text))
    return pa.schema(fields, metadata={SPEC_KEY: spec.to_json().encode()})


def _compressed(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata=_COMPRESSED)


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
        CHECKSUM_FIELD,
    ]
)

WHITENING_SCHEMA = pa.schema(
    [
        pa.field("whitening", pa.string(), nullable=False),
        pa.field("spec", pa.string()),  # hash of the spec whose rows it whitens; null for a newer metric
        pa.field("layer", pa.string(), nullable=False),
        pa.field("layer_index", pa.int32(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("examples", pa.int64(), nullable=False),
        pa.field("sums", pa.list_(pa.float64()), nullable=False),  # of an older lorif, which lacks what follows
        pa.field("source", pa.int32()),
        pa.field("matrix_scales", pa.list_(pa.float64())),
        pa.field("matrix", pa.list_(pa.float16())),
        pa.field("matrix_digest", pa.uint64()),
        pa.field("covariance_scales", pa.list_(pa.float64())),
        pa.field("covariance", pa.list_(pa.float16())),
        pa.field("covariance_digest", pa.uint64()),
        CHECKSUM_FIELD,
    ]
)

SCALE_SCHEMA = pa.schema(
    [
        pa.field("scales", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("layer_index", pa.int32(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("scale", pa.list_(pa.float32()), nullable=False),
        CHECKSUM_FIELD,
    ]
)

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        CHECKSUM_FIELD,
    ]
)

REMOVED_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("removed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        CHECKSUM_FIELD,
    ]
)

GENERATIONS_SCHEMA = pa.schema(
    [
        pa.field("generation", pa.int64(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("factors_version", pa.int64(), nullable=False),
        pa.field("curvature_version", pa.int64(), nullable=False),
        pa.field("spec", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("parts_json", pa.string(), nullable=False),
        pa.field("coverage_json", pa.string(), nullable=False),
        pa.field("skipped_json", pa.string(), nullable=False),
        pa.field("timings_json", pa.string(), nullable=False),
        pa.field("quarantined_json", pa.string(), nullable=False),
        pa.field("changes_json", pa.string(), nullable=False),
        pa.field("removals", pa.int64(), nullable=False),
        CHECKSUM_FIELD,
    ]
)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Rows of one shard in the order of the file, ready to be stored; a shard may have several parts.

    `checkpoints` says at what state of the model each row was made, if it is not that of the spec.
    """

    examples: Sequence[Example]
    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    checkpoints: Sequence[str] | None = None


def to_table(rows: ShardRows, shard: ShardRef, spec: IndexSpec, schema: pa.Schema) -> pa.Table:
    """Convert rows, with codes as stored and float32 scales (n, S), to a table.

    Args:
        rows: the rows.
        shard: their shard.
        spec: their spec.
        schema: that of the stored table, or `factors_schema(spec)`. Columns that users have added are null.

    Raises:
        UserError: a column that users have added may not be null.
    """
    n = len(rows.examples)
    magnitude = np.ones(n, np.float32) if is_float(spec.code.dtype) else rows.scales.max(axis=1)
    scales = rows.scales / np.where(magnitude > 0, magnitude, 1.0)[:, None]
    columns: dict[str, object] = {
        "example_id": [example.example_id for example in rows.examples],
        "shard": [shard.key] * n,
        "uri": [shard.uri] * n,
        "row": [example.row for example in rows.examples],
        "tokens": [len(example.input_ids) for example in rows.examples],
        "loss": rows.losses,
        "content_hash": [example.content_hash for example in rows.examples],
        "checkpoint": [spec.checkpoint] * n if rows.checkpoints is None else list(rows.checkpoints),
        "spec": [spec.hash] * n,
        "text": [example.text for example in rows.examples],
        TURNS: [turns_to_json(example.turns) for example in rows.examples],
        "codes": _fixed_size(rows.codes),
        "scales": _fixed_size(scales.astype(np.float32 if is_float(spec.code.dtype) else np.float16)),
        "magnitude": magnitude,
    }
    for field in schema:
        if field.name not in (*columns, CHECKSUMS) and not field.nullable:
            raise UserError(
                f"column {field.name!r} of the table factors is not one of lorif's and may not be null, so no row "
                f"can be added; make it nullable (alter_columns of lance) or drop it"
            )
    arrays = {
        field.name: column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for field in schema
        for column in [columns.get(field.name, [None] * n)]
        if field.name != CHECKSUMS
    }
    arrays[CHECKSUMS] = factors_checksums(arrays, schema.field(CHECKSUMS).type)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _fixed_size(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def code_matrix(column: pa.Array) -> torch.Tensor:
    """A fixed-size-list column as a read-only (rows, width) tensor of the stored dtype, without a copy."""
    flat = column.flatten().to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(flat.reshape(len(column), -1))


def scale_matrix(batch: pa.RecordBatch) -> torch.Tensor:
    """Scales (rows, S) float32 of a batch, multiplied by the magnitudes."""
    scales = code_matrix(batch.column("scales")).float()
    if "magnitude" not in batch.schema.names:
        return scales
    return scales * torch.from_numpy(batch.column("magnitude").to_numpy().copy())[:, None]


def curvature_batches(
    curvature_id: str, layers: dict[int, tuple[str, LayerCurvature]]
) -> Iterator[pa.RecordBatch]:
    """Fitted layers, given as number -> (name, fit), as rows of `CURVATURE_SCHEMA`, one per component."""
    for index, (name, fitted) in layers.items():
        vectors = fitted.basis.T.contiguous().numpy()
        for start in range(0, len(vectors), _COMPONENTS_PER_BATCH):
            part = vectors[start : start + _COMPONENTS_PER_BATCH]
            n = len(part)
            offsets = pa.array(range(0, (n + 1) * part.shape[1], part.shape[1]), type=pa.int32())
            batch = pa.RecordBatch.from_arrays(
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
                schema=pa.schema(list(CURVATURE_SCHEMA)[:-1]),
            )
            seeds = [LAST_COMPONENT if row == len(vectors) - 1 else 0 for row in range(start, start + n)]
            yield with_checksum(batch, seeds)


def layer_curvature(table: pa.Table, rank: int) -> LayerCurvature:
    """The fit of one layer from its rows, which are in the order of components; at most `rank` are in use."""
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
        min(rank, table.num_rows),
    )
