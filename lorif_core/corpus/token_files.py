"""Files of token ids that pretraining has on disk, behind one protocol: Megatron, flat arrays and MosaicML MDS.

Most of them name no columns. Their only one is then called `tokens`.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from lorif_core.config import CorpusConfig
from lorif_core.config_sections import BinaryConfig
from lorif_core.corpus.flat_tokens import FlatReader
from lorif_core.corpus.megatron import INDEX_ENDING, MegatronReader
from lorif_core.corpus.mosaic import COMPRESSED_ENDINGS, MDS_ENDING, MdsReader
from lorif_core.storage.filesystem import SourceFile

TOKEN_ENDINGS = (".bin", INDEX_ENDING, ".npy", MDS_ENDING, f"{MDS_ENDING}.zstd")
"""Endings of files of token ids, and of the index of a Megatron file."""

_INDEXES = "indexes of Megatron files"
_OFFSETS = "offsets of rows, which belong to files of token ids"
_ALSO_PLAIN = "compressed MDS shards that are there without compression, too"


class TokenReader(Protocol):
    """Reads one file. It opens the file for each call, and reads the bytes that the call needs.

    All methods raise DamagedFileError for a file that is cut off, and UserError for one of another format.
    """

    @property
    def revision(self) -> str:
        """A tag that changes whenever a row may change: by the file, the one beside it, or its layout.

        Raises:
            FileNotFoundError: the file beside it does not exist.
        """

    def kinds(self) -> dict[str, str]:
        """Kind of each column, as `columnar.column_kinds` names them."""

    def count(self) -> int:
        """Number of rows."""

    def read(self, columns: Sequence[str], start: int, rows: int | None) -> Iterator[dict[str, Any]]:
        """Records with `columns`, of `rows` rows from row `start`; None reads to the end.

        Token ids are (T,) arrays of integers. Columns that the file does not have are left out.
        """


def is_token_file(name: str) -> bool:
    """Whether the ending of a name is one of token ids; files with it may still be something else."""
    return name.lower().endswith((*TOKEN_ENDINGS, *COMPRESSED_ENDINGS))


def token_reader(file: SourceFile, binary: BinaryConfig) -> TokenReader | None:
    """The reader of a file; None if its ending is not one of token ids."""
    name = file.name.lower()
    if name.endswith((MDS_ENDING, *COMPRESSED_ENDINGS)):
        return MdsReader(file, binary)
    if name.endswith(".npy") or (name.endswith(".bin") and binary.dtype is not None):
        return FlatReader(file, binary)
    return MegatronReader(file) if name.endswith(".bin") else None


def with_revision(file: SourceFile, binary: BinaryConfig) -> SourceFile:
    """The file with the revision of its reader as its tag. Raises FileNotFoundError as `TokenReader.revision`."""
    reader = token_reader(file, binary)
    return file if reader is None else replace(file, etag=reader.revision)


def reason_against(file: SourceFile, corpus: CorpusConfig, exists: Callable[[str], bool]) -> str | None:
    """Why a file with such an ending is not read; None if it is.

    Args:
        file: the file.
        corpus: the corpus; without `tokens` and `binary` most of these endings mean something else.
        exists: whether there is a file at a path.
    """
    name, path, binary = file.name.lower(), posixpath.splitext(file.path)[0], corpus.binary
    if binary.offsets is not None and name.endswith(binary.offsets.lower()):
        return _OFFSETS
    if name.endswith(INDEX_ENDING):
        return _INDEXES if exists(f"{path}.bin") else f"files that end in {INDEX_ENDING}"
    if name.endswith(COMPRESSED_ENDINGS):
        return _ALSO_PLAIN if exists(path) else None
    if name.endswith(MDS_ENDING):
        return None
    if name.endswith(".npy"):
        if corpus.tokens is None or not binary.is_set:
            return "files that end in .npy, which are token ids only with corpus.tokens and corpus.binary"
        return None
    if corpus.tokens is None:
        return "files that end in .bin, which are token ids only with corpus.tokens"
    if binary.dtype is None and not exists(path + INDEX_ENDING):
        return f"files that end in .bin, without {INDEX_ENDING} beside them and without corpus.binary.dtype"
    return None
