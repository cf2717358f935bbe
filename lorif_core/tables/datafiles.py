"""The data files of the tables: list them, find those that versions and receipts refer to, and remove others."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from lorif_core.config import StorageConfig
from lorif_core.storage.filesystem import open_filesystem, storage_errors
from lorif_core.tables.datasets import Tables
from lorif_core.tables.receipts import Finished, distinct

_THREADS = 16  # file requests wait for the storage, not for the CPU


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file of a table; `modified` is a time of the storage's clock."""

    table: str
    name: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was never completed: its parts use space and appear in no listing of files."""

    bucket: str
    key: str
    upload_id: str


class DataFiles:
    """The data files of one index.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._tables = Tables(uri, storage)

    def list_files(self, table: str) -> list[DataFile]:
        """All data files of a table, including those that no version refers to."""
        fs, path = self._folder(table)
        with storage_errors(self._tables.uri):
            try:
                infos = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        return [
            DataFile(table, posixpath.basename(info["name"]), info["size"], _modified(info))
            for info in infos
            if info["type"] == "file"
        ]

    def referenced(self, table: str, versions: Iterable[int]) -> set[str]:
        """Names of the files that the newest version or one of `versions` refers to."""
        datasets = [self._tables.require(table), *(self._tables.require(table, version) for version in versions)]
        fragments = (fragment for dataset in datasets for fragment in dataset.get_fragments())
        return {file.path for fragment in fragments for file in fragment.data_files()}

    def adoptable(self, receipts: Sequence[Finished]) -> list[Finished]:
        """The receipts whose files all exist with the stated size; each shard is in one of them."""
        with ThreadPoolExecutor(_THREADS) as pool:
            complete = list(pool.map(self._has_complete_files, receipts))
        return distinct(receipt for receipt, is_complete in zip(receipts, complete, strict=True) if is_complete)

    def remove(self, files: Iterable[DataFile]) -> None:
        """Remove files; a file that does not exist any more is not an error."""
        for table, names in _by_table(files).items():
            self.remove_named(table, names)

    def remove_named(self, table: str, names: Iterable[str]) -> None:
        """Remove files of a table by name; a file that does not exist any more is not an error."""
        fs, path = self._folder(table)

        def remove_one(name: str) -> None:
            with storage_errors(self._tables.uri, "write"):
                try:
                    fs.rm_file(f"{path}/{name}")
                except FileNotFoundError:
                    return

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(remove_one, names))

    def unfinished_uploads(self, age: timedelta) -> list[Upload]:
        """Uploads below the index that were started more than `age` ago; a local folder has none."""
        fs, path = open_filesystem(self._tables.uri, self._tables.storage)
        if isinstance(fs, LocalFileSystem):
            return []
        bucket, _, prefix = path.partition("/")
        with storage_errors(self._tables.uri):
            response: Mapping[str, Any] = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        limit = datetime.now(UTC) - age
        return [
            Upload(bucket, upload["Key"], upload["UploadId"])
            for upload in response.get("Uploads", [])
            if upload["Initiated"] < limit
        ]

    def abort(self, uploads: Iterable[Upload]) -> None:
        """Abort uploads, which frees the space of their parts."""
        for upload in uploads:
            fs, _ = open_filesystem(self._tables.uri, self._tables.storage)
            with storage_errors(self._tables.uri, "write"):
                fs.call_s3(
                    "abort_multipart_upload", Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id
                )

    def _has_complete_files(self, receipt: Finished) -> bool:
        fs, path = self._folder("factors")
        with storage_errors(self._tables.uri):
            try:
                return all(fs.info(f"{path}/{name}")["size"] == size for name, size in receipt.files)
            except FileNotFoundError:
                return False

    def _folder(self, table: str) -> tuple[Any, str]:
        fs, path = open_filesystem(self._tables.path(table), self._tables.storage)
        return fs, f"{path}/data"


def _by_table(files: Iterable[DataFile]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.table, []).append(file.name)
    return names


def _modified(info: Mapping[str, Any]) -> datetime:
    return info.get("LastModified") or datetime.fromtimestamp(info["mtime"], UTC)
