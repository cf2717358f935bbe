"""The reference of the stored tables and of the parquet files, from their Arrow schemas."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from docs_generators.markdown import anchor, code, fenced, page, table
from lorif_core.report.batch_outputs import SCORES_SCHEMA
from lorif_core.search.selection import SELECTION_SCHEMA
from lorif_core.spec import CodeDtype, CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, TokenSpec
from lorif_core.tables.schema import (
    CURVATURE_SCHEMA,
    GENERATIONS_SCHEMA,
    REMOVED_SCHEMA,
    SCALE_SCHEMA,
    SKIPPED_SCHEMA,
    WHITENING_SCHEMA,
    factors_schema,
)

_INTRODUCTION = """\
# Tables and files

An index is a LanceDB database; its tables open with plain `lancedb.connect`. Readers of the product see whole
generations: a row of `generations` names the versions of `factors` and `curvature` that belong together. A
reader that opens a table without a version sees its latest version, which may hold rows that no generation has
published yet.
"""
_READ = """\
import lancedb

database = lancedb.connect("my-index")
newest = database.open_table("generations").to_arrow().to_pylist()[-1]
factors = database.open_table("factors")
factors.checkout(newest["factors_version"])
"""
_AFTER = """\
The folder `_lorif/` inside an index holds the lease, receipts and run records of the pipeline. Their format
may change and is not part of this reference.
"""

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
_LAYER = "Name of the tracked layer, as the model names its module."
_LAYER_INDEX = "Number of the layer, in the order of the spec, from 0."
_EXAMPLE_ID = "Id of the training example: the value of `corpus.id`, or `<file>#<row>` without it."
_SHARD = "Shard that the row belongs to: file, range of rows, ETag and size."
_CHECKPOINT = (
    "Fingerprint of the checkpoint that the gradient was computed at, or `recorded:RUN/step-N` if a training "
    "recorded it."
)
_CONTENT_HASH = "Hash of the token ids and labels: equal examples have equal hashes."
_SPEC = "Hash of the spec: rows with equal hashes can be scored together."
_SYMMETRIC = "the matrix is M_ij = s_i s_j q_ij. Empty if `source` is another layer."
_STRIPS = (
    "strips of 32 rows, one after another, each row by row from the first diagonal entry of the strip on. Empty "
    "if `source` is another layer."
)
_CHECKSUM = "XXH3 (64 bits) over the other columns of the row; null in rows that an older lorif wrote."

COLUMN_DESCRIPTIONS: dict[str, dict[str, str]] = {
    "factors": {
        "example_id": _EXAMPLE_ID,
        "shard": _SHARD,
        "uri": "URI of the corpus file.",
        "row": "Number of the record in its file, from 0.",
        "tokens": "Tokens of the example.",
        "loss": "Cross-entropy summed over the scored tokens, in nats.",
        "content_hash": _CONTENT_HASH,
        "checkpoint": _CHECKPOINT,
        "spec": _SPEC,
        "text": "Text of the example; null where the example has none. Absent with `corpus.store_text: false`.",
        "chat_turns": "Turns of a conversation in the text, as JSON: role, first character, and the one after the "
        "last. Only in indexes of conversations that store texts; null for a block of one.",
        "codes": "Codes of all layers, one after the other. The type follows `code.dtype`; `int4` and `sign` are "
        "packed into bytes.",
        "scales": "One number for each layer and term that its decoded code is multiplied by.",
        "magnitude": "Number that the scales of the row are multiplied by. Absent with float codes.",
        "checksums": "Lower 32 bits of XXH3 over the id and the code, over the other columns without the text, "
        "and over the text and its turns if they are stored; null in rows that an older lorif wrote.",
    },
    "curvature": {
        "curvature": "Id of the fit; a generation names the ids that it uses.",
        "layer": _LAYER,
        "layer_index": _LAYER_INDEX,
        "component": "Number of the eigenvector within its layer, largest eigenvalue first, from 0.",
        "sigma2": "Eigenvalue of the curvature.",
        "damping": "Damping lambda of the layer.",
        "outside": "Number that divides the part of a query outside the eigenvectors that are used.",
        "trace": "Trace of the curvature: the total squared norm of the layer's stored gradients.",
        "rows": "Rows of `factors` that were summed.",
        "vector": "Eigenvector, d1 d2 long.",
        "checksum": _CHECKSUM,
    },
    "whitening": {
        "whitening": "Name of the whitening: a digest of its covariances and roots.",
        "spec": "Hash of the spec whose rows are whitened with them; null for a metric that was measured later.",
        "layer": _LAYER,
        "layer_index": _LAYER_INDEX,
        "side": "`in` for the layer's inputs, `out` for the gradients at its output.",
        "size": "Rows and columns of the matrix: d1 or d2.",
        "tokens": "Tokens that the covariances were measured on, or stand for.",
        "examples": "Examples that they were measured on.",
        "sums": "Sum of outer products over the tokens, row by row, in rows of an older lorif, which lack what "
        "follows.",
        "source": "Number of the layer whose matrices this side has, too; its own number if it has its own.",
        "matrix_scales": f"s of `matrix`: {_SYMMETRIC}",
        "matrix": "The inverse root of the covariance; of a newer metric, which has no `spec`, the factor that "
        f"folds queries. q in {_STRIPS}",
        "matrix_digest": "XXH3 of `matrix`, also if the layer `source` has it.",
        "covariance_scales": "s of the mean covariance over the tokens, as in `matrix_scales`.",
        "covariance": "q of the covariance, as in `matrix`.",
        "covariance_digest": "XXH3 of the covariance, also if the layer `source` has it.",
        "checksum": _CHECKSUM,
    },
    "scale": {
        "scales": "Name of the scales: a digest of all of them.",
        "layer": _LAYER,
        "layer_index": _LAYER_INDEX,
        "side": "`in` for the layer's inputs, `out` for the gradients at its output.",
        "scale": "What each coordinate of the side is multiplied by before it is folded.",
        "checksum": _CHECKSUM,
    },
    "generations": {
        "generation": "Number of the generation, from 1.",
        "created_at": "When it was published.",
        "factors_version": "Version of the table `factors` that it reads.",
        "curvature_version": "Version of the table `curvature` that it reads.",
        "spec": "Hash of the spec of its newest rows.",
        "checkpoint": "Fingerprint of the checkpoint of its newest rows.",
        "rows": "Rows of all its parts.",
        "tokens": "Tokens of all its parts.",
        "parts_json": "Its parts: rows of one spec, where their checkpoint was, and what they are scored with.",
        "coverage_json": "Parameters of the tracked layers, of the whole model, and what is not tracked.",
        "skipped_json": "Examples that were left out, with the reason.",
        "timings_json": "Seconds of each stage of the build or update.",
        "quarantined_json": "Shards that failed every attempt (`--publish-incomplete`), or that a repair removed.",
        "changes_json": "The command that made the generation, and what changed since the one before.",
        "removals": "Rows of the table `removed` that its rows respect.",
        "checksum": _CHECKSUM,
    },
    "skipped": {
        "shard": _SHARD,
        "example_id": _EXAMPLE_ID,
        "reason": "Why the example was left out: no scored token, or a loss or gradient that is not finite.",
        "checksum": _CHECKSUM,
    },
    "removed": {
        "example_id": _EXAMPLE_ID,
        "content_hash": _CONTENT_HASH,
        "removed_at": "When `lorif remove` removed it.",
        "checksum": _CHECKSUM,
    },
    "scores.parquet": {
        "query_id": "The query's `id`, or its position in the queries file, from 0.",
        "rank": "Position within the side, from 1.",
        "side": "`proponent` or `opponent`.",
        "example_id": _EXAMPLE_ID,
        "score": "How much the example matters to the query; larger means proponent.",
        "shard": _SHARD,
        "checkpoint": _CHECKPOINT,
        "text": "Text of the example; null where the index stores none.",
    },
    "selection": {
        "example_id": _EXAMPLE_ID,
        "shard": _SHARD,
        "uri": "URI of the corpus file.",
        "row": "Number of the record in its file, from 0.",
        "score": "Mean score over the target queries, or the self-influence with `--self-influence`.",
    },
}

_PURPOSES = {
    "factors": "One row for each training example: where it comes from, and the code of its gradient.",
    "curvature": "Eigenpairs of the curvature of each layer; empty with `curvature.kind: none`.",
    "whitening": "Covariances of projected gradients and the roots that whiten with them, one row for each layer "
    "and side.",
    "scale": "Scales of both sides of each layer, from the second moments of the optimiser; only with "
    "`curvature.kind: adam`.",
    "generations": "One row for each published state of the index.",
    "skipped": "Examples that were left out of the index.",
    "removed": "Examples that were removed on request; no later build or update brings them back.",
    "scores.parquet": "The file that `lorif attribute` writes: the strongest examples of each query.",
    "selection": "The parquet file that `lorif select` writes, in the order of the index.",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the page shows it."""

    name: str
    types: tuple[str, ...]
    nullable: bool


def tables_page() -> str:
    """The page `reference/tables.md`."""
    blocks = [_INTRODUCTION, fenced("python", _READ)]
    for name, columns in all_columns().items():
        blocks += [f"## {name} {{#{name}}}", _PURPOSES[name], _column_table(name, columns)]
    return page(*blocks, _AFTER)


def all_columns() -> dict[str, list[Column]]:
    """The columns of every table and file."""
    fixed = {
        "curvature": CURVATURE_SCHEMA,
        "whitening": WHITENING_SCHEMA,
        "scale": SCALE_SCHEMA,
        "generations": GENERATIONS_SCHEMA,
        "skipped": SKIPPED_SCHEMA,
        "removed": REMOVED_SCHEMA,
        "scores.parquet": SCORES_SCHEMA,
        "selection": SELECTION_SCHEMA,
    }
    factors = [factors_schema(_spec(dtype)) for dtype in ("float32", "float16", "int8", "int4", "sign")]
    return {"factors": _merged(factors), **{name: _merged([schema]) for name, schema in fixed.items()}}


def _merged(schemas: Sequence[pa.Schema]) -> list[Column]:
    """The columns of several versions of a schema, with all types that each may have."""
    fields: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, []).append(field)
    return [
        Column(name, tuple(dict.fromkeys(_type(field.type) for field in found)), found[0].nullable)
        for name, found in fields.items()
    ]


def _type(kind: pa.DataType) -> str:
    """The name of an Arrow type. The length of a fixed-size list depends on the model and is left out."""
    if pa.types.is_fixed_size_list(kind):
        return f"fixed-size list of {_type(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    return _FLOATS.get(str(kind), str(kind))


def _spec(dtype: CodeDtype) -> IndexSpec:
    """The spec of an index of one small layer with dense codes."""
    tokenisation = TokenSpec("none", None, None, None, None, None, None, 8, False, messages="messages", chat="[]")
    layer = LayerSpec("layer", 8, 8, 8, 8)
    return IndexSpec("none", "float32", (layer,), ProjectionSpec(), CodeSpec("dense", 1, dtype), tokenisation)


def _column_table(table_name: str, columns: Sequence[Column]) -> str:
    rows = [
        [
            anchor(f"{table_name}.{column.name}") + code(column.name),
            " or ".join(map(code, column.types)),
            "yes" if column.nullable else "no",
            COLUMN_DESCRIPTIONS[table_name][column.name],
        ]
        for column in columns
    ]
    return table(["Column", "Arrow type", "Null", "Meaning"], rows)
