"""Lance datasets below one URI: opened, created, and appended to so that nothing is ever stored twice.

A commit carries the keys of what it adds. That makes it safe to try again: what an earlier attempt has brought in
is left out, and what two commits brought in nevertheless (an answer of the store was lost and Lance itself tried
again, or a committer that was stopped for long woke up) is taken out again at once.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments

from lorif_core.config import StorageConfig
from lorif_core.errors import StoreUnavailableError, UserError
from lorif_core.storage.connection import lance_options
from lorif_core.storage.faults import explain
from lorif_core.storage.filesystem import open_filesystem

log = logging.getLogger(__name__)

_TRIES = 4
_SECONDS_OF_RETRIES = 4.0
_FILE_VERSION = "2.0"  # scanned fastest of 2.0, 2.1 and 2.2 (STACK.md, section 4)
_KEYS_PROPERTY = "lorif.keys"
_MAX_ROWS_PER_FILE = 2**31 - 1  # one call makes one fragment, so that a key is in one fragment


class Tables:
    """The tables of an index, at a local folder or an object-store URI.

    Args:
        uri: the index.
        storage: where it is.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.uri = uri.rstrip("/")
        self.storage = storage

    def path(self, name: str) -> str:
        """URI of a table."""
        return f"{self.uri}/{name}.lance"

    def open(self, name: str, version: int | None = None) -> Any:
        """A table as a Lance dataset, or None if there is no such table (or never was this version)."""
        with store_told(self.uri):
            try:
                return lance.dataset(self.path(name), version=version, storage_options=self._options())
            except (ValueError, OSError) as error:
                if "was not found" in str(error):
                    return None
                raise

    def require(self, name: str, version: int | None = None) -> Any:
        """A table as a Lance dataset. Raises UserError if it is not there."""
        dataset = self.open(name, version)
        if dataset is None and version is not None:
            raise UserError(
                f"the index {self.uri} no longer has version {version} of the table {name}: the generation that "
                f"read it was collected; open the index again"
            )
        if dataset is None:
            raise UserError(f"the index {self.uri} has no table {name}; run lorif build first")
        return dataset

    def scan(self, name: str, version: int | None = None, **options: Any) -> Iterator[pa.RecordBatch]:
        """Stream a table, or a version of it; `options` are those of Lance's scanner."""
        dataset = self.require(name, version)
        with store_told(self.uri):
            yield from dataset.scanner(**options).to_batches()

    def read(self, name: str, version: int | None = None, **options: Any) -> pa.Table:
        """What `scan` streams, at once."""
        dataset = self.require(name, version)
        with store_told(self.uri):
            return dataset.to_table(**options)

    def create(self, name: str, schema: pa.Schema) -> None:
        """Make an empty table if it is not there."""
        if self.open(name) is None:
            with store_told(self.uri, "write"):
                lance.write_dataset(
                    schema.empty_table(),
                    self.path(name),
                    mode="create",
                    data_storage_version=_FILE_VERSION,
                    storage_options=self._options(),
                )

    def write(self, name: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> list[str]:
        """Stream rows into an uncommitted fragment; metadata as JSON. Errors of `batches` come out as raised."""
        raised: list[Exception] = []

        def watched() -> Iterator[pa.RecordBatch]:
            try:
                yield from batches
            except Exception as error:
                raised.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, watched())
        with store_told(self.uri, "write"):
            try:
                fragments = write_fragments(
                    reader,
                    self.path(name),
                    mode="append",
                    schema=schema,
                    max_rows_per_file=_MAX_ROWS_PER_FILE,
                    storage_options=self._options(),
                )
            except OSError as error:  # Lance's, with that of `batches` as text inside
                if not raised:
                    raise
                raise raised[0] from error
        return [json.dumps(fragment.to_json()) for fragment in fragments]

    def append(self, name: str, fragments: Mapping[str, Sequence[str]], since: int) -> Any:
        """Commit written fragments by key as one version, each key once; the table as it is afterwards.

        A commit whose connection breaks is tried again here: Lance does not, as it cannot know that it may.

        Args:
            name: the table.
            fragments: metadata as JSON of the fragments of each key.
            since: a version whose keys the caller knows; keys of later ones are left out.
        """
        for _ in range(_TRIES - 1):
            began = time.monotonic()
            try:
                return self._append_once(name, fragments, since)
            except StoreUnavailableError as error:
                if time.monotonic() - began > _SECONDS_OF_RETRIES:
                    raise  # the libraries have tried for long enough
                log.warning("committing again: %s", error)
                time.sleep(1)
        return self._append_once(name, fragments, since)

    def _append_once(self, name: str, fragments: Mapping[str, Sequence[str]], since: int) -> Any:
        with store_told(self.uri, "write"):
            dataset = self.require(name)
            present = {key for _, keys in _commits_after(dataset, since) for key in keys}
            new = {key: list(parts) for key, parts in fragments.items() if parts and key not in present}
            if new:
                transaction = lance.Transaction(
                    dataset.version,
                    lance.LanceOperation.Append(
                        [lance.FragmentMetadata.from_json(text) for parts in new.values() for text in parts]
                    ),
                    transaction_properties={
                        _KEYS_PROPERTY: json.dumps([[key, len(parts)] for key, parts in new.items()])
                    },
                )
                dataset = lance.LanceDataset.commit(self.path(name), transaction, storage_options=self._options())
            return self._without_doubles(name, dataset, since)

    def remove_fragments(self, name: str, fragments: set[int]) -> Any:
        """Take whole fragments out of a table; the table as it is afterwards. Earlier versions keep them."""
        return self._commit(name, lance.LanceOperation.Delete([], sorted(fragments), ""))

    def replace_fragments(self, name: str, fragments: set[int], written: Sequence[str]) -> Any:
        """Put written fragments (metadata as JSON) in the place of others, as one version."""
        new = [lance.FragmentMetadata.from_json(text) for text in written]
        return self._commit(name, lance.LanceOperation.Update(sorted(fragments), [], new))

    def restore(self, name: str, version: int) -> Any:
        """Make the newest version of a table equal to an earlier one; nothing is copied."""
        self.require(name, version)
        return self._commit(name, lance.LanceOperation.Restore(version))

    def _commit(self, name: str, operation: Any) -> Any:
        with store_told(self.uri, "write"):
            dataset = self.require(name)
            return lance.LanceDataset.commit(
                self.path(name), operation, read_version=dataset.version, storage_options=self._options()
            )

    def _without_doubles(self, name: str, dataset: Any, since: int) -> Any:
        """Take out again the fragments of keys that an earlier commit after `since` has brought in too."""
        seen: set[str] = set()
        doubled: list[int] = []
        for version, keys in _commits_after(dataset, since):
            if seen.intersection(keys):
                doubled += self._fragments_added(name, version, keys, seen)
            seen.update(keys)
        left = {fragment.fragment_id for fragment in dataset.get_fragments()}
        if not left.intersection(doubled):
            return dataset
        return self.remove_fragments(name, left.intersection(doubled))

    def _fragments_added(self, name: str, version: int, keys: Mapping[str, int], repeated: set[str]) -> list[int]:
        """Fragments that a version added for repeated keys; a commit numbers its fragments in their order."""
        before, after = (self.require(name, number).get_fragments() for number in (version - 1, version))
        added = sorted({part.fragment_id for part in after} - {part.fragment_id for part in before})
        owners = [key for key, count in keys.items() for _ in range(count)]
        return [fragment for fragment, key in zip(added, owners, strict=True) if key in repeated]

    def _options(self) -> dict[str, str]:
        open_filesystem(
            self.uri, self.storage
        )  # Lance cannot tell wrong credentials from a table that is not there
        return lance_options(self.storage) if self.uri.startswith("s3://") else {}


def _commits_after(dataset: Any, since: int) -> Iterator[tuple[int, dict[str, int]]]:
    """(version, fragments by key) of the commits after a version, oldest first."""
    for version in range(since + 1, dataset.version + 1):
        transaction = dataset.read_transaction(version)
        properties = (transaction.transaction_properties or {}) if transaction is not None else {}
        keys = json.loads(properties.get(_KEYS_PROPERTY, "[]"))
        if keys:
            yield version, dict(keys)


@contextmanager
def store_told(uri: str, doing: str = "read") -> Iterator[None]:
    """Say in one sentence what is wrong with a store, whatever kind of exception Lance has for it.

    Raises:
        LorifError: as `explain` classifies it.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise explain(error, uri, doing) from None  # what it came from may quote signed headers


def quoted(text: str) -> str:
    """The inside of an SQL string literal."""
    return text.replace("'", "''")
