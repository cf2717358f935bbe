"""The table `whitening`: covariances and their inverse roots, named by a digest of both.

A row has the matrices of one side of a layer. Sides with equal covariances store them once: the others name the
layer that has them. Readers of roots read no covariances. An index of an older lorif has float64 sums, and no
roots.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lorif_core.curvature.metric import exact_metric
from lorif_core.gradients.roots import (
    SideMatrices,
    SideSummary,
    WhitenedSide,
    exact_roots,
    stored_roots,
    whitening_name,
)
from lorif_core.gradients.symmetric import PackedMatrix
from lorif_core.gradients.whitening import Covariances, SideKey
from lorif_core.spec import IndexSpec, LayerSpec
from lorif_core.tables.checksums import CHECKSUM, damaged, differing_rows, with_checksum
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import WHITENING_SCHEMA
from lorif_core.tables.sql import escape_sql

_BATCH_ROWS = 16
_OLDER = WHITENING_SCHEMA.names[: WHITENING_SCHEMA.names.index("sums") + 1]
_SUMMARY = [
    "layer_index", "side", "size", "tokens", "examples", "source", "matrix_digest", "covariance_digest"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class WhiteningHeader:
    """What all rows of a whitening have in common.

    Attributes:
        name: digest of the covariances and roots.
        spec: hash of the spec whose rows they whiten; None for a newer metric.
        tokens: tokens that the covariances were measured on, or stand for.
        examples: examples that they were measured on.
    """

    name: str
    spec: str | None
    tokens: int
    examples: int


class WhiteningTable:
    """Covariances and roots by name.

    Args:
        tables: tables of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def create(self) -> None:
        """Create the table, or the columns that the table of an older lorif lacks."""
        self._tables.create("whitening", WHITENING_SCHEMA)

    def write(
        self, header: WhiteningHeader, sides: Iterable[WhitenedSide], layers: Sequence[LayerSpec]
    ) -> list[str]:
        """Write rows of some sides, which `commit` makes visible; returns the metadata of their fragments."""
        batches = (_row(header, side, layers[side.summary.layer].name) for side in sides)
        return self._tables.write("whitening", batches, WHITENING_SCHEMA)

    def commit(self, name: str, fragments: Sequence[str]) -> None:
        """Commit all fragments of a whitening at once; does nothing if it is stored already."""
        since = int(self._tables.require("whitening").version)
        if name not in self.specs():
            self._tables.append("whitening", {name: fragments}, since)

    def add(self, covariances: Covariances, layers: Sequence[LayerSpec], spec: IndexSpec | None = None) -> str:
        """Compute the roots of covariances here, and store both; returns their name.

        Args:
            covariances: covariances in the projected space.
            layers: the layers that they belong to.
            spec: spec of the rows that they whiten, with or without a whitening; None if there are none.
        """
        name, sides = stored_roots(covariances)
        of_rows = None if spec is None else spec.with_whitening(name).hash
        self.create()
        if name not in self.specs():
            header = WhiteningHeader(name, of_rows, covariances.tokens, covariances.examples)
            self.commit(name, self.write(header, sides, layers))
        return name

    def roots(self, name: str | None, layers: range | None = None) -> SideMatrices | None:
        """The roots of that name, of all layers or only some; None if `name` is None, as for random projections.

        They are as stored, so that all processes use the same numbers. Those of an index of an older lorif, which
        has none, are computed.

        Raises:
            DamagedIndexError: the table does not contain them, or they are damaged.
        """
        if name is None:
            return None
        summaries = self._summaries(name)
        if summaries is None:
            return exact_roots(self._older(name))
        return SideMatrices(self._matrices(name, "matrix", _chosen(summaries, layers)))

    def metric(self, name: str | None, whitening: str | None) -> SideMatrices | None:
        """The metric of that name, which folds queries for codes of a whitening; None if `name` is None.

        It was computed when it was measured. An index of an older lorif has only its covariances, from which it is
        computed.

        Raises:
            DamagedIndexError: the table does not contain them, or they are damaged.
        """
        if name is None:
            return None
        summaries = self._summaries(name)
        if summaries is not None:
            return SideMatrices(self._matrices(name, "matrix", summaries))
        frozen = self.roots(whitening)
        return None if frozen is None else exact_metric(frozen, exact_roots(self._older(name)))

    def covariances(self, name: str | None, layers: range | None = None) -> Covariances | None:
        """The covariances of that name, as sums over its tokens; of all layers, or only some.

        Raises:
            DamagedIndexError: the table does not contain them, or they are damaged.
        """
        if name is None:
            return None
        summaries = self._summaries(name)
        if summaries is None:
            return self._older(name)
        tokens, examples = summaries[0]["tokens"], summaries[0]["examples"]
        matrices = self._matrices(name, "covariance", _chosen(summaries, layers))
        like = torch.empty(0, dtype=torch.float64)
        return Covariances(
            {key: packed.dense(like) * tokens for key, packed in matrices.items()}, tokens, examples
        )

    def check(self, name: str) -> None:
        """Read all that is stored under a name. Raises DamagedIndexError if any of it is damaged."""
        summaries = self._summaries(name)
        if summaries is None:
            self._older(name)
            return
        for column in ("matrix", "covariance"):
            self._matrices(name, column, summaries)
        for batch in self._scan(name, [*WHITENING_SCHEMA.names]):
            if differing_rows(pa.Table.from_batches([batch])):
                raise damaged(self._tables.uri, "rows of the table whitening differ from their checksums")

    def specs(self) -> dict[str, str | None]:
        """Names of all stored whitenings, each with the hash of the spec whose rows it whitens, or None."""
        if self._tables.open("whitening") is None:
            return {}
        rows = self._tables.read("whitening", columns=["whitening", "spec"]).to_pylist()
        return {row["whitening"]: row["spec"] for row in rows}

    def examples(self, name: str) -> int:
        """Number of examples that the covariances of that name were measured on."""
        (row,) = self._tables.read(
            "whitening", columns=["examples"], filter=f"whitening = '{escape_sql(name)}'", limit=1
        ).to_pylist()
        return int(row["examples"])

    def _scan(self, name: str, columns: list[str], more: str = "") -> Iterator[pa.RecordBatch]:
        condition = f"whitening = '{escape_sql(name)}'{more}"
        return self._tables.scan("whitening", columns=columns, filter=condition, batch_size=_BATCH_ROWS)

    def _summaries(self, name: str) -> list[dict[str, Any]] | None:
        """What is small of all rows, checked against the name; None if an older lorif stored them."""
        if "source" not in self._tables.require("whitening").schema.names:
            return None
        rows = [row for batch in self._scan(name, _SUMMARY) for row in batch.to_pylist()]
        if rows and all(row["source"] is None for row in rows):
            return None
        if not rows or any(None in row.values() for row in rows) or _name_of(rows) != name:
            raise self._lacks(name)
        return rows

    def _matrices(
        self, name: str, column: str, summaries: Sequence[dict[str, Any]]
    ) -> dict[SideKey, PackedMatrix]:
        """The matrices `matrix` or `covariance` of some rows; those of one source are one object."""
        wanted = {(row["source"], row["side"]): row[f"{column}_digest"] for row in summaries}
        numbers = ", ".join(str(number) for number in sorted({source for source, _ in wanted}))
        found: dict[SideKey, PackedMatrix] = {}
        columns = ["layer_index", "side", f"{column}_scales", column]
        for batch in self._scan(name, columns, f" AND layer_index IN ({numbers}) AND source = layer_index"):
            keys = zip(batch.column("layer_index").to_pylist(), batch.column("side").to_pylist(), strict=True)
            scales, levels = (_arrays(batch.column(part)) for part in columns[2:])
            for key, row_scales, row_levels in zip(keys, scales, levels, strict=True):
                packed = PackedMatrix(row_scales, row_levels)
                if key in wanted and packed.digest != wanted[key]:
                    raise damaged(self._tables.uri, f"a {column} in the table whitening differs from its digest")
                found[key] = packed
        if wanted.keys() - found.keys():
            raise self._lacks(name)
        return {(row["layer_index"], row["side"]): found[row["source"], row["side"]] for row in summaries}

    def _older(self, name: str) -> Covariances:
        """The covariances that an older lorif has stored as sums."""
        covariances = Covariances()
        present = self._tables.require("whitening").schema.names
        columns = [column for column in (*_OLDER, CHECKSUM) if column in present]
        for batch in self._scan(name, columns):
            if differing_rows(pa.Table.from_batches([batch])):
                raise damaged(self._tables.uri, "rows of the table whitening differ from their checksums")
            for row, values in zip(
                batch.drop_columns("sums").to_pylist(), _arrays(batch.column("sums")), strict=True
            ):
                sums = torch.from_numpy(values.copy()).view(row["size"], -1)
                covariances.sums[row["layer_index"], row["side"]] = sums
                covariances.tokens, covariances.examples = row["tokens"], row["examples"]
        if not covariances.sums or covariances.digest() != name:
            raise self._lacks(name)
        return covariances

    def _lacks(self, name: str) -> Exception:
        return damaged(self._tables.uri, f"the table whitening lacks {name}, or differs from this digest")


def _chosen(summaries: list[dict[str, Any]], layers: range | None) -> list[dict[str, Any]]:
    return [row for row in summaries if layers is None or row["layer_index"] in layers]


def _name_of(rows: Sequence[dict[str, Any]]) -> str:
    summaries = (
        SideSummary(
            row["layer_index"],
            row["side"],
            row["size"],
            row["source"],
            row["matrix_digest"],
            row["covariance_digest"],
        )
        for row in rows
    )
    return whitening_name(rows[0]["tokens"], rows[0]["examples"], summaries)


def _row(header: WhiteningHeader, side: WhitenedSide, layer: str) -> pa.RecordBatch:
    """One row; without matrices if another layer has them."""
    summary = side.summary
    values = {
        "whitening": header.name, "spec": header.spec, "layer": layer, "layer_index": summary.layer,
        "side": summary.side, "size": summary.size, "tokens": header.tokens, "examples": header.examples,
        "source": summary.source, "matrix_digest": summary.matrix, "covariance_digest": summary.covariance,
    }  # fmt: skip
    columns: dict[str, pa.Array] = {
        name: pa.array([value], WHITENING_SCHEMA.field(name).type) for name, value in values.items()
    }
    for column, packed in (("matrix", side.matrix), ("covariance", side.covariance)):
        is_own = summary.source == summary.layer
        columns[f"{column}_scales"] = _list(packed.scales[: None if is_own else 0])
        columns[column] = _list(packed.levels[: None if is_own else 0])
    columns["sums"] = _list(np.empty(0))
    schema = pa.schema(list(WHITENING_SCHEMA)[:-1])
    return with_checksum(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))


def _list(values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))


def _arrays(column: pa.ListArray) -> list[np.ndarray]:
    """The values of every row of a column of lists, without a copy."""
    values, edges = column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(edges)]
