"""Reads the rows of a file of queries or of pairs."""

from collections.abc import Sequence
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.corpus import columnar, jsonl
from lorif_core.corpus.records import checking_file, column_kinds, is_jsonl
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile, find_files

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def query_records(
    path: str, storage: StorageConfig, content: str, fields: Sequence[str], needed: str
) -> list[dict[str, Any]]:
    """All rows, in memory since queries are few; only the columns of the fields where the format allows it.

    Args:
        path: one file of JSON lines or Parquet.
        storage: how to access it.
        content: `queries` or `pairs`, for messages.
        fields: the columns to read.
        needed: in words, the columns that a row needs.

    Raises:
        UserError: the path has several files, or the file is empty or has none of the columns.
    """
    files = find_files(path, storage, _ENDINGS)
    if len(files) > 1:
        raise UserError(f"{path} has {len(files)} {content} files; name one of them")
    records = _rows(files[0], content, fields, needed)
    if not records:
        raise UserError(f"the {content} file {path} is empty; give at least one query")
    return records


def _rows(file: SourceFile, content: str, fields: Sequence[str], needed: str) -> list[dict[str, Any]]:
    kinds = column_kinds(file) or {}
    with checking_file(file):
        if is_jsonl(file):
            return [record for _, record in jsonl.read_records(file, columns=fields)]
        known = [field for field in fields if field in kinds]
        if not known:
            raise UserError(
                f"the {content} file {file.uri} has {', '.join(kinds) or 'no columns'}; it needs {needed}"
            )
        return [record for _, record in columnar.read_records(file, known)]
