"""Data of a Python program as a file of a corpus, so that an index of it is like any other."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.objects import Objects

Records: TypeAlias = "Sequence[str] | Sequence[Mapping[str, Any]] | pa.Table | Any"
"""A list of texts or dicts, an Arrow table, a pandas DataFrame, or a Dataset of Hugging Face."""


def store_records(records: Records, index: str, storage: StorageConfig) -> str:
    """Write data as Parquet into the folder of an index; returns the URI.

    The same data have the same name and are written once, so that a build that runs again resumes.

    Raises:
        UserError: the data have no rows, are of no supported type, or have values that Parquet cannot store.
        StoreUnavailableError: the store keeps failing.
    """
    content = _as_parquet(records)
    name = f"corpus/{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    objects = Objects(index, storage)
    if objects.get_bytes(name) is None:
        objects.put_bytes(name, content)
    return f"{objects.uri}/{objects.folder}/{name}"


def _as_parquet(records: Records) -> bytes:
    sink = pa.BufferOutputStream()
    try:
        table = _table(records)
        if not table.num_rows:
            raise UserError("the corpus has no rows; give at least one")
        pq.write_table(table, sink)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"the corpus cannot be stored as Parquet: {one_line(error)}; change these values, or leave "
            f"their column out"
        ) from None
    return sink.getvalue().to_pybytes()


def _table(records: Records) -> pa.Table:
    if isinstance(records, pa.Table):
        return records
    library = type(records).__module__.partition(".")[0]
    if library == "pandas":
        return pa.Table.from_pandas(records, preserve_index=False)
    if library == "datasets":
        return _of_dataset(records)
    if isinstance(records, Sequence) and all(isinstance(record, str) for record in records):
        return pa.table({"text": pa.array(list(records), pa.string())})
    if isinstance(records, Sequence) and all(isinstance(record, Mapping) for record in records):
        return _of_dicts(records)
    raise UserError(
        f"the corpus is a {type(records).__name__}; give a path, a list of texts or of dicts, an Arrow table, a "
        f"DataFrame, or a Dataset that is not streamed"
    )


def _of_dataset(dataset: Any) -> pa.Table:
    """The rows of a Dataset; a DatasetDict has several, and a streamed one cannot be read twice."""
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "num_rows") or isinstance(dataset, Mapping):
        raise UserError(
            f"the corpus is a {type(dataset).__name__}; give one split that is not streamed, such as "
            f"dataset['train']"
        )
    return dataset.with_format("arrow")[:]


def _of_dicts(records: Sequence[Any]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    try:
        return pa.table({name: [record.get(name) for record in records] for name in names})
    except pa.ArrowException as error:
        raise UserError(f"the corpus has values of several types in one column: {error}") from None
