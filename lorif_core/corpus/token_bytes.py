"""What readers of token files have in common: exact reads, and the file that lies beside another."""

import posixpath
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from lorif_core.corpus.padding import MASK_NAME
from lorif_core.errors import DamagedFileError
from lorif_core.storage.filesystem import SourceFile, entity_tag

COLUMN = "tokens"
"""The column of files that name none."""


def read_exactly(raw: BinaryIO, offset: int, size: int, file: SourceFile) -> bytes:
    """The bytes [offset, offset + size). Raises DamagedFileError if the file ends before."""
    raw.seek(offset)
    pieces, missing = [], size
    while missing and (piece := raw.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    if missing:
        raise DamagedFileError(f"{file.uri} is cut off: it ends before byte {offset + size}; restore it")
    return b"".join(pieces)


def read_array(raw: BinaryIO, offset: int, dtype: np.dtype, count: int, file: SourceFile) -> np.ndarray:
    """(count,) values that begin at byte `offset`. Raises DamagedFileError if the file ends before."""
    return np.frombuffer(read_exactly(raw, offset, count * dtype.itemsize, file), dtype)


def beside(file: SourceFile, ending: str) -> SourceFile:
    """The file of the same name with another ending. Raises FileNotFoundError if it does not exist."""
    path, uri, name = (posixpath.splitext(text)[0] + ending for text in (file.path, file.uri, file.name))
    info = file.fs.info(path)
    return replace(file, path=path, uri=uri, name=name, etag=entity_tag(info), size=info["size"])


def token_record(ids: np.ndarray, columns: tuple[str, ...]) -> dict[str, object]:
    """A row of a stream of tokens. It has no padding, also where it begins or ends with several ends of text."""
    record: dict[str, object] = {COLUMN: ids}
    if MASK_NAME in columns:
        record[MASK_NAME] = [1] * len(ids)
    return record
