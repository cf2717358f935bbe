"""Lance datasets below one URI: open, create, and append without ever storing anything twice.

A commit carries the keys of the fragments that it adds, which makes it safe to repeat: `append` skips the keys
that an earlier attempt has committed. If two commits add a key anyway, `append` removes the second copy at once.
This happens if a response of the storage is lost and Lance itself retries, or if a suspended committer resumes.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import write_fragments

from lorif_core.config import StorageConfig
from lorif_core.errors import StoreUnavailableError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.storage.connection import lance_options
from lorif_core.storage.faults import explain, one_line
from lorif_core.storage.filesystem import open_filesystem
from lorif_core.tables.checksums import damaged
from lorif_core.tables.contents import CONTENTS_KEY
from lorif_core.tables.file_digests import DIGESTS_KEY, FileDigests

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_FILE_BATCH_ROWS = 512
_SLOW_ATTEMPT_SECONDS = 4.0
_FILE_VERSION = "2.0"
_FILE_VERSIONS = {"factors": "2.1"}  # compresses numbers and constants, and scans codes as fast (benchmarks.rows)
_SIGNS_OF_DAMAGE = ("corrupt file", "failed to decode", "panicked")
_KEYS_PROPERTY = "lorif.keys"
_MAX_ROWS_PER_FILE = 2**31 - 1  # one call writes one fragment, so that a key has one fragment


class Tables:
    """The tables of an index, at a local folder or an object-store URI.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.uri = uri.rstrip("/")
        self.storage = storage
        self.digests = FileDigests(self.uri, storage)

    def path(self, name: str) -> str:
        """URI of a table."""
        return f"{self.uri}/{name}.lance"

    def open(self, name: str, version: int | None = None) -> Any:
        """A table as a Lance dataset; None if the table or the version does not exist."""
        with table_errors(self.uri):
            try:
                dataset = lance.dataset(self.path(name), version=version, storage_options=self._options())
                dataset.schema.names  # noqa: B018 - Lance panics here, not before, if its manifest is damaged
                return dataset
            except (ValueError, OSError) as error:
                if "was not found" in str(error):
                    return None
                raise

    def require(self, name: str, version: int | None = None) -> Any:
        """A table as a Lance dataset. Raises UserError if the table or the version does not exist."""
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
        """Stream a version of a table, the newest by default; `options` go to Lance's scanner."""
        dataset = self.require(name, version)
        with table_errors(self.uri):
            yield from dataset.scanner(**options).to_batches()

    def read(self, name: str, version: int | None = None, **options: Any) -> pa.Table:
        """The rows that `scan` streams, as one table."""
        dataset = self.require(name, version)
        with table_errors(self.uri):
            return dataset.to_table(**options)

    def read_file(self, name: str, file: str) -> Iterator[pa.RecordBatch]:
        """Stream the rows of a data file of a table, which no version need refer to."""
        with table_errors(self.uri):
            reader = LanceFileReader(f"{self.path(name)}/data/{file}", storage_options=self._options())
            yield from reader.read_all(batch_size=_FILE_BATCH_ROWS).to_batches()

    def create(self, name: str, schema: pa.Schema) -> None:
        """Create an empty table, or add the columns, of nulls, that a table of an older lorif lacks."""
        dataset = self.open(name)
        if dataset is not None:
            missing = [field for field in schema if field.name not in dataset.schema.names]
            if missing:
                with table_errors(self.uri, "write"):
                    dataset.add_columns(pa.schema(missing))
            return
        with table_errors(self.uri, "write"):
            lance.write_dataset(
                schema.empty_table(),
                self.path(name),
                mode="create",
                data_storage_version=_FILE_VERSIONS.get(name, _FILE_VERSION),
                storage_options=self._options(),
            )

    def write(self, name: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> list[str]:
        """Stream rows into an uncommitted fragment; returns its metadata as JSON, with the digests of its files.

        Raises:
            Exception: an error of `batches`, unchanged.
            LorifError: the storage failed, as `explain` classifies it.
        """
        batch_errors: list[Exception] = []

        def recording_errors() -> Iterator[pa.RecordBatch]:
            try:
                yield from batches
            except Exception as error:
                batch_errors.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, recording_errors())
        with table_errors(self.uri, "write"):
            try:
                fragments = write_fragments(
                    reader,
                    self.path(name),
                    mode="append",
                    schema=schema,
                    max_rows_per_file=_MAX_ROWS_PER_FILE,
                    storage_options=self._options(),
                )
            except OSError as error:  # Lance quotes an error of `batches` as text in an error of its own
                if not batch_errors:
                    raise
                raise batch_errors[0] from error
        return [self._with_digests(name, fragment.to_json()) for fragment in fragments]

    def _with_digests(self, name: str, metadata: dict[str, Any]) -> str:
        digests = {file["path"]: self.digests.compute(name, file["path"]) for file in metadata["files"]}
        return json.dumps({**metadata, DIGESTS_KEY: digests})

    def append(self, name: str, fragments: Mapping[str, Sequence[str]], since: int) -> Any:
        """Commit written fragments by key as one version, each key once.

        If the connection breaks during a commit, this method repeats it. Lance does not, because it cannot know
        that repeating is safe.

        Args:
            name: name of the table.
            fragments: metadata as JSON of the fragments of each key.
            since: a version whose keys the caller knows; keys that later versions have added are skipped.

        Returns:
            The table after the commit, as a Lance dataset.
        """
        for _ in range(_ATTEMPTS - 1):
            started = time.monotonic()
            try:
                return self._append_once(name, fragments, since)
            except StoreUnavailableError as error:
                if time.monotonic() - started > _SLOW_ATTEMPT_SECONDS:
                    raise  # the libraries below have retried already
                log.warning("repeating a commit that failed: %s", error)
                time.sleep(1)
        return self._append_once(name, fragments, since)

    def _append_once(self, name: str, fragments: Mapping[str, Sequence[str]], since: int) -> Any:
        with table_errors(self.uri, "write"):
            dataset = self.require(name)
            committed = {key for _, keys in _commits_after(dataset, since) for key in keys}
            new = {key: list(parts) for key, parts in fragments.items() if parts and key not in committed}
            if new:
                self.digests.record(name, new)
                transaction = lance.Transaction(
                    dataset.version,
                    lance.LanceOperation.Append(
                        [_fragment_metadata(text) for parts in new.values() for text in parts]
                    ),
                    transaction_properties={
                        _KEYS_PROPERTY: json.dumps([[key, len(parts)] for key, parts in new.items()])
                    },
                )
                dataset = lance.LanceDataset.commit(self.path(name), transaction, storage_options=self._options())
            return self._remove_duplicates(name, dataset, since)

    def remove_fragments(self, name: str, fragments: set[int]) -> Any:
        """Remove fragments in a new version of a table, which is returned. Earlier versions keep them."""
        return self._commit(name, lance.LanceOperation.Delete([], sorted(fragments), ""))

    def replace_fragments(self, name: str, fragments: set[int], written: Sequence[str]) -> Any:
        """Replace fragments by written ones (metadata as JSON), as one version."""
        self.digests.record(name, {"": written})
        new = [_fragment_metadata(text) for text in written]
        return self._commit(name, lance.LanceOperation.Update(sorted(fragments), [], new))

    def restore(self, name: str, version: int) -> Any:
        """Make a new version of a table that equals an earlier one; no data is copied."""
        self.require(name, version)
        return self._commit(name, lance.LanceOperation.Restore(version))

    def remove_versions(self, name: str, versions: Sequence[int]) -> None:
        """Remove versions of a table that have no tag and are not the newest; the files of others stay."""
        with table_errors(self.uri, "write"):
            self.require(name).cleanup_old_versions(versions=list(versions), error_if_tagged_old_versions=False)

    def _commit(self, name: str, operation: Any) -> Any:
        with table_errors(self.uri, "write"):
            dataset = self.require(name)
            return lance.LanceDataset.commit(
                self.path(name), operation, read_version=dataset.version, storage_options=self._options()
            )

    def _remove_duplicates(self, name: str, dataset: Any, since: int) -> Any:
        """Remove the fragments of keys that an earlier commit after `since` has added too."""
        seen: set[str] = set()
        duplicates: set[int] = set()
        for version, keys in _commits_after(dataset, since):
            if seen.intersection(keys):
                duplicates.update(self._fragments_added(name, version, keys, seen))
            seen.update(keys)
        duplicates &= {fragment.fragment_id for fragment in dataset.get_fragments()}
        return self.remove_fragments(name, duplicates) if duplicates else dataset

    def _fragments_added(self, name: str, version: int, keys: Mapping[str, int], repeated: set[str]) -> list[int]:
        """Fragments that a version added for `repeated` keys; a commit numbers fragments in the order of keys."""
        before, after = (self.require(name, number).get_fragments() for number in (version - 1, version))
        added = sorted({part.fragment_id for part in after} - {part.fragment_id for part in before})
        owners = [key for key, count in keys.items() for _ in range(count)]
        return [fragment for fragment, key in zip(added, owners, strict=True) if key in repeated]

    def _options(self) -> dict[str, str]:
        # checks the credentials: Lance reports wrong ones as a missing table
        open_filesystem(self.uri, self.storage)
        return lance_options(self.storage) if self.uri.startswith("s3://") else {}


def _fragment_metadata(text: str) -> Any:
    metadata = json.loads(text)
    for key in (DIGESTS_KEY, CONTENTS_KEY):
        metadata.pop(key, None)
    return lance.FragmentMetadata.from_json(json.dumps(metadata))


def _commits_after(dataset: Any, since: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield (version, number of fragments by key) of the commits after a version, oldest first."""
    for version in range(since + 1, dataset.version + 1):
        transaction = dataset.read_transaction(version)
        properties = (transaction.transaction_properties or {}) if transaction is not None else {}
        keys = json.loads(properties.get(_KEYS_PROPERTY, "[]"))
        if keys:
            yield version, dict(keys)


@contextmanager
def table_errors(uri: str, action: str = "read") -> Iterator[None]:
    """Replace an exception of Lance by one that says in one sentence what is wrong with the storage.

    Raises:
        LorifError: as `explain` classifies it; DamagedIndexError if Lance cannot decode a file, or if it panics,
            which it does on some damaged files.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        if any(sign in str(error) for sign in _SIGNS_OF_DAMAGE):
            raise damaged(uri, f"Lance cannot read a file of its tables ({one_line(error)})") from None
        raise explain(error, uri, action) from None  # the cause may quote signed headers
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which does not export it
            raise
        raise damaged(uri, f"Lance cannot read a file of its tables ({one_line(error)})") from None
