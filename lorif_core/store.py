"""The index in LanceDB: fragments, wave commits, curvature and generations. All I/O of the index is here.

Writers append uncommitted fragments; one committer turns a wave of them into a version; a generation names a
version of each table. Readers only ever open generations, so nothing a writer does can change what they see.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Protocol

import lance
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lance.fragment import write_fragments

from lorif_core.config import StorageConfig
from lorif_core.curvature import LayerCurvature
from lorif_core.errors import LorifError, UserError
from lorif_core.factors import CodeLayout
from lorif_core.filesystem import one_line
from lorif_core.schema import (
    CURVATURE_SCHEMA,
    GENERATIONS_SCHEMA,
    SKIPPED_SCHEMA,
    SPEC_KEY,
    ShardRows,
    curvature_batches,
    factors_schema,
    layer_curvature,
    matrix,
    to_table,
)
from lorif_core.spec import IndexSpec, ShardRef

log = logging.getLogger(__name__)

_FILE_VERSION = "2.0"  # scanned fastest of 2.0, 2.1 and 2.2 (STACK.md, section 4)
_SHARDS_PROPERTY = "lorif.shards"
_KEYS_PER_FILTER = 500


@dataclass(frozen=True, slots=True)
class Generation:
    """A published, immutable view of the index."""

    generation: int
    created_at: datetime
    factors_version: int
    curvature_version: int
    curvature: str
    curvature_kind: str
    spec: str
    spec_json: str
    checkpoint: str
    model_path: str
    model_revision: str | None
    rows: int
    tokens: int
    coverage_json: str
    skipped_json: str
    timings_json: str

    @property
    def index_spec(self) -> IndexSpec:
        """The spec of the rows."""
        return IndexSpec.from_json(self.spec_json)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one scanned batch: ids and, as float32 tensors, codes (B, W) and scales (B, L)."""

    example_ids: list[str]
    codes: torch.Tensor
    scales: torch.Tensor


class CommittableShard(Protocol):
    """What a commit needs of a receipt."""

    @property
    def shard(self) -> str: ...
    @property
    def fragments(self) -> Sequence[str]: ...
    @property
    def skipped(self) -> Sequence[tuple[str, str]]: ...


class Store:
    """The tables of one index, at a local folder or an object-store URI."""

    def __init__(self, uri: str, storage: StorageConfig | None = None) -> None:
        self.uri = uri.rstrip("/")
        self._options = storage_options(storage or StorageConfig())

    # ---- writing -------------------------------------------------------------------------------------------

    def check_spec(self, spec: IndexSpec) -> None:
        """Raise UserError naming the differing keys if the index holds rows of another spec."""
        stored = self.stored_spec()
        if stored is not None and stored.hash != spec.hash:
            raise UserError(
                f"the index {self.uri} was made with another spec: {'; '.join(spec.differences(stored))}; "
                f"use another index, or the settings of this one"
            )

    def create(self, spec: IndexSpec) -> None:
        """Make the tables if they are not there. Raises UserError if they are of another spec."""
        self.check_spec(spec)
        for name, schema in (
            ("factors", factors_schema(spec)),
            ("curvature", CURVATURE_SCHEMA),
            ("generations", GENERATIONS_SCHEMA),
            ("skipped", SKIPPED_SCHEMA),
        ):
            if self._open(name) is None:
                lance.write_dataset(
                    schema.empty_table(),
                    self._path(name),
                    mode="create",
                    data_storage_version=_FILE_VERSION,
                    storage_options=self._options,
                )

    def write_rows(self, parts: Iterator[ShardRows], shard: ShardRef, spec: IndexSpec) -> list[str]:
        """Stream a shard's rows into uncommitted fragments; their metadata as JSON, for `commit_wave`.

        An error raised by `parts` comes out as it was raised.
        """
        schema = factors_schema(spec)
        raised: list[Exception] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for rows in parts:
                    if rows.examples:
                        yield from to_table(rows, shard, spec).to_batches()
            except Exception as error:
                raised.append(error)
                raise

        stream = batches()
        first = next(stream, None)
        if first is None:
            return []
        reader = pa.RecordBatchReader.from_batches(schema, chain([first], stream))
        try:
            fragments = write_fragments(
                reader, self._path("factors"), mode="append", schema=schema, storage_options=self._options
            )
        except OSError as error:  # Lance's, with that of `parts` as text inside
            raise raised[0] if raised else error from None
        return [json.dumps(fragment.to_json()) for fragment in fragments]

    def commit_wave(self, receipts: Sequence[CommittableShard], since: int) -> int:
        """Append the fragments of finished shards as one version, each shard once.

        Shards that another commit has brought in after version `since` are left out: a commit that is tried again
        after it succeeded, or a second build that overlaps, doubles nothing.

        Args:
            receipts: finished shards.
            since: version of `factors` when the caller decided which shards were missing.

        Returns:
            The version of `factors` after the commit.
        """
        self._note_skipped(receipts)
        dataset = self._require("factors")
        present = self._shards_committed_after(dataset, since)
        new = [receipt for receipt in receipts if receipt.shard not in present and receipt.fragments]
        if not new:
            return int(dataset.version)
        transaction = lance.Transaction(
            dataset.version,
            lance.LanceOperation.Append(
                [lance.FragmentMetadata.from_json(text) for receipt in new for text in receipt.fragments]
            ),
            transaction_properties={_SHARDS_PROPERTY: json.dumps([receipt.shard for receipt in new])},
        )
        committed = lance.LanceDataset.commit(self._path("factors"), transaction, storage_options=self._options)
        return int(committed.version)

    def keep_only(self, shards: set[str]) -> set[str]:
        """Delete rows of shards that the corpus no longer has, and return the keys of those that are left.

        Versioned: published generations keep their rows.
        """
        committed = self.committed_shards()
        gone = sorted(committed - shards)
        dataset = self._require("factors")
        for start in range(0, len(gone), _KEYS_PER_FILTER):
            keys = ", ".join(f"'{_quoted(key)}'" for key in gone[start : start + _KEYS_PER_FILTER])
            dataset.delete(f"shard IN ({keys})")
        return committed & shards

    def write_curvature(self, curvature_id: str, layers: dict[int, tuple[str, LayerCurvature]]) -> int:
        """Append fitted layers (by number, with their names); version of `curvature` afterwards."""
        dataset = self._require("curvature")
        batches = curvature_batches(curvature_id, layers)
        reader = pa.RecordBatchReader.from_batches(CURVATURE_SCHEMA, batches)
        written = lance.write_dataset(
            reader, self._path("curvature"), mode="append", schema=CURVATURE_SCHEMA,
            data_storage_version=_FILE_VERSION, storage_options=self._options,
        )  # fmt: skip
        return int((written or dataset).version)

    def publish(self, generation: Generation) -> Generation:
        """Append a generation and tag its versions, so that clean-up spares them.

        Raises:
            LorifError: another build has published a generation of this number meanwhile.
        """
        if any(other.generation == generation.generation for other in self.generations()):
            raise LorifError(
                f"generation {generation.generation} of {self.uri} was published by another build meanwhile; run "
                f"this one again"
            )
        for table, version in (
            ("factors", generation.factors_version),
            ("curvature", generation.curvature_version),
        ):
            tags, tag = self._require(table).tags, f"generation-{generation.generation}"
            # a run that died between tagging and appending leaves its tag behind
            (tags.update if tag in tags.list() else tags.create)(tag, version)
        row = pa.Table.from_pylist([asdict(generation)], schema=GENERATIONS_SCHEMA)
        lance.write_dataset(
            row, self._path("generations"), mode="append", data_storage_version=_FILE_VERSION,
            storage_options=self._options,
        )  # fmt: skip
        return generation

    # ---- reading -------------------------------------------------------------------------------------------

    def stored_spec(self) -> IndexSpec | None:
        """The spec of the rows in the index, or None where there is no index yet."""
        dataset = self._open("factors")
        if dataset is None:
            return None
        return IndexSpec.from_json((dataset.schema.metadata or {})[SPEC_KEY].decode())

    def committed_shards(self) -> set[str]:
        """Keys of the shards whose rows are in the newest version of `factors`."""
        shards: set[str] = set()
        for batch in self._require("factors").scanner(columns=["shard"]).to_batches():
            shards.update(batch.column("shard").unique().to_pylist())
        return shards

    def skipped(self, shards: set[str]) -> list[tuple[str, str]]:
        """(example id, reason) of everything that was left out of some shards."""
        table = self._require("skipped").to_table(columns=["shard", "example_id", "reason"])
        return sorted({(row["example_id"], row["reason"]) for row in table.to_pylist() if row["shard"] in shards})

    def counts(self, version: int | None = None) -> tuple[int, int]:
        """(rows, tokens) of a version of `factors`."""
        rows = tokens = 0
        for batch in self._require("factors", version).scanner(columns=["tokens"]).to_batches():
            rows += batch.num_rows
            tokens += pc.sum(batch.column("tokens")).as_py() or 0
        return rows, tokens

    def factors_version(self) -> int:
        """Newest version of `factors`."""
        return int(self._require("factors").version)

    def curvature_version(self) -> int:
        """Newest version of `curvature`."""
        return int(self._require("curvature").version)

    def generations(self) -> list[Generation]:
        """All published generations, newest last; empty where there is no index."""
        dataset = self._open("generations")
        rows = [] if dataset is None else dataset.to_table().to_pylist()
        return sorted((Generation(**row) for row in rows), key=lambda generation: generation.generation)

    def latest(self) -> Generation:
        """The newest generation. Raises UserError if nothing was ever published here."""
        found = self.generations()
        if not found:
            state = "holds no published generation" if self._open("factors") else "does not exist"
            raise UserError(f"the index {self.uri} {state}; run lorif build first")
        return found[-1]

    def code_bytes(self, version: int) -> int:
        """Bytes on storage of the codes and scales of a version of `factors`."""
        dataset = self._require("factors", version)
        names = {field.id(): field.name() for field in dataset.lance_schema.fields()}
        fields = dataset.stats.data_stats().fields
        return sum(field.bytes_on_disk for field in fields if names.get(field.id) in ("codes", "scales"))

    def fragment_ids(self, version: int) -> list[int]:
        """Fragments of a version of `factors`: the units in which workers share a scan."""
        return [fragment.fragment_id for fragment in self._require("factors", version).get_fragments()]

    def scan(self, version: int, batch_rows: int, fragments: Sequence[int] | None = None) -> Iterator[Block]:
        """Stream codes of a version of `factors`, or of some of its fragments, in blocks of `batch_rows`."""
        dataset = self._require("factors", version)
        chosen = None if fragments is None else [dataset.get_fragment(number) for number in fragments]
        scanner = dataset.scanner(
            columns=["example_id", "codes", "scales"],
            fragments=chosen,
            batch_size=batch_rows,
            batch_readahead=2,
            fragment_readahead=1,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield Block(
                    batch.column("example_id").to_pylist(),
                    matrix(batch.column("codes")),
                    matrix(batch.column("scales")),
                )

    def details(self, version: int, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Descriptive columns (all but codes and scales) of some examples, by id."""
        dataset = self._require("factors", version)
        columns = [name for name in dataset.schema.names if name not in ("codes", "scales")]
        found: dict[str, dict[str, Any]] = {}
        wanted = sorted(set(example_ids))
        for start in range(0, len(wanted), _KEYS_PER_FILTER):
            ids = ", ".join(f"'{_quoted(example_id)}'" for example_id in wanted[start : start + _KEYS_PER_FILTER])
            table = dataset.to_table(columns=columns, filter=f"example_id IN ({ids})")
            found.update({row["example_id"]: row for row in table.to_pylist()})
        return found

    def curvature_layers(self, generation: Generation) -> Iterator[tuple[int, LayerCurvature]]:
        """Fitted layers of a generation by number, one in memory at a time."""
        dataset = self._require("curvature", generation.curvature_version)
        for index in range(len(generation.index_spec.layers)):
            condition = f"curvature = '{_quoted(generation.curvature)}' AND layer_index = {index}"
            table = dataset.to_table(filter=condition).sort_by("component")
            if table.num_rows == 0:
                raise LorifError(f"the index {self.uri} lacks the curvature of layer {index}; rebuild it")
            yield index, layer_curvature(table)

    def spectra(self, generation: Generation) -> list[dict[str, Any]]:
        """Per component: layer, layer_index, component, sigma2, damping, trace; without the vectors."""
        dataset = self._require("curvature", generation.curvature_version)
        columns = ["layer", "layer_index", "component", "sigma2", "damping", "trace"]
        table = dataset.to_table(columns=columns, filter=f"curvature = '{_quoted(generation.curvature)}'")
        return table.sort_by([("layer_index", "ascending"), ("component", "ascending")]).to_pylist()

    # ---- lance ---------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self.uri}/{name}.lance"

    def _open(self, name: str, version: int | None = None) -> Any:
        try:
            return lance.dataset(self._path(name), version=version, storage_options=self._options)
        except (ValueError, OSError) as error:
            if version is None and "was not found" in str(error):
                return None
            raise LorifError(f"the index {self.uri} cannot be read: {one_line(error)}") from error

    def _require(self, name: str, version: int | None = None) -> Any:
        dataset = self._open(name, version)
        if dataset is None:
            raise UserError(f"the index {self.uri} has no table {name}; run lorif build first")
        return dataset

    @staticmethod
    def _shards_committed_after(dataset: Any, since: int) -> set[str]:
        shards: set[str] = set()
        for version in range(since + 1, dataset.version + 1):
            transaction = dataset.read_transaction(version)
            properties = (transaction.transaction_properties or {}) if transaction is not None else {}
            shards.update(json.loads(properties.get(_SHARDS_PROPERTY, "[]")))
        return shards

    def _note_skipped(self, receipts: Sequence[CommittableShard]) -> None:
        """Before the rows: a build that resumes lists what the earlier one left out."""
        rows = [
            {"shard": receipt.shard, "example_id": example_id, "reason": reason}
            for receipt in receipts
            for example_id, reason in receipt.skipped
        ]
        if rows:
            lance.write_dataset(
                pa.Table.from_pylist(rows, schema=SKIPPED_SCHEMA), self._path("skipped"), mode="append",
                data_storage_version=_FILE_VERSION, storage_options=self._options,
            )  # fmt: skip


def block_rows(layout: CodeLayout, memory_gb: float) -> int:
    """Rows of a scanned block: as stored and as float32 they take at most an eighth of the memory."""
    per_row = layout.bytes_per_example + 4 * (layout.width + len(layout.slots))
    return max(16, min(4096, int(memory_gb * 2**30 / 8 / per_row)))


def storage_options(storage: StorageConfig) -> dict[str, str]:
    """Lance's spelling of the storage section; `aws_endpoint` is the only one that beats the environment."""
    options = {"aws_endpoint": storage.endpoint, "aws_region": storage.region}
    if storage.allow_http:
        options["allow_http"] = "true"
    return {key: value for key, value in options.items() if value is not None}


def now() -> datetime:
    """The current time in UTC, for `created_at`."""
    return datetime.now(UTC)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
