"""The data files under the tables: which there are, which versions and receipts name, removing the rest."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from lorif_core.config import StorageConfig
from lorif_core.storage.filesystem import contact, open_filesystem
from lorif_core.tables.datasets import Tables
from lorif_core.tables.receipts import Receipt

_THREADS = 16  # looking at files waits for the store, not for this machine


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file of a table; `modified` is the store's clock."""

    table: str
    name: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and never ended: its parts take space and are nowhere listed."""

    bucket: str
    key: str
    upload_id: str


class DataFiles:
    """Files below the tables of one index.

    Args:
        uri: the index.
        storage: where it is.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._tables = Tables(uri, storage)

    def listed(self, table: str) -> list[DataFile]:
        """Data files of a table, named by a version or not."""
        fs, path = self._folder(table)
        with contact(self._tables.uri):
            try:
                infos = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        return [
            DataFile(table, posixpath.basename(info["name"]), info["size"], _modified(info))
            for info in infos
            if info["type"] == "file"
        ]

    def named(self, table: str, versions: Iterable[int]) -> set[str]:
        """Files that the newest version and some others name."""
        datasets = [self._tables.require(table), *(self._tables.require(table, version) for version in versions)]
        fragments = (fragment for dataset in datasets for fragment in dataset.get_fragments())
        return {file.path for fragment in fragments for file in fragment.data_files()}

    def adoptable(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Those receipts whose files are all there and whole."""
        with ThreadPoolExecutor(_THREADS) as pool:
            whole = list(pool.map(self._is_whole, receipts))
        return [receipt for receipt, kept in zip(receipts, whole, strict=True) if kept]

    def remove(self, files: Iterable[DataFile]) -> None:
        """Remove files; those that are gone already are no error."""

        def remove_one(file: DataFile) -> None:
            fs, path = self._folder(file.table)
            with contact(self._tables.uri, "write"):
                try:
                    fs.rm_file(f"{path}/{file.name}")
                except FileNotFoundError:
                    return

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(remove_one, files))

    def unfinished_uploads(self, age: timedelta) -> list[Upload]:
        """Uploads below the index that were begun longer than `age` ago; a local folder has none."""
        fs, path = open_filesystem(self._tables.uri, self._tables.storage)
        if isinstance(fs, LocalFileSystem):
            return []
        bucket, _, prefix = path.partition("/")
        with contact(self._tables.uri):
            answer: Mapping[str, Any] = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        limit = datetime.now(UTC) - age
        return [
            Upload(bucket, upload["Key"], upload["UploadId"])
            for upload in answer.get("Uploads", [])
            if upload["Initiated"] < limit
        ]

    def abort(self, uploads: Iterable[Upload]) -> None:
        """Give up uploads and free their parts."""
        for upload in uploads:
            fs, _ = open_filesystem(self._tables.uri, self._tables.storage)
            with contact(self._tables.uri, "write"):
                fs.call_s3(
                    "abort_multipart_upload", Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id
                )

    def _is_whole(self, receipt: Receipt) -> bool:
        fs, path = self._folder("factors")
        with contact(self._tables.uri):
            try:
                return all(fs.info(f"{path}/{name}")["size"] == size for name, size in receipt.files)
            except FileNotFoundError:
                return False

    def _folder(self, table: str) -> tuple[Any, str]:
        fs, path = open_filesystem(self._tables.path(table), self._tables.storage)
        return fs, f"{path}/data"


def _modified(info: Mapping[str, Any]) -> datetime:
    return info.get("LastModified") or datetime.fromtimestamp(info["mtime"], UTC)
