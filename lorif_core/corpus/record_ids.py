"""The ids that the records of a corpus have in the column `corpus.id`."""

from collections.abc import Iterator, Sequence, Set

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.files import find_corpus_files
from lorif_core.corpus.id_hashes import IdHashes, hash_id
from lorif_core.corpus.records import is_unicode, read_records
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile


def find_id(
    corpus: CorpusConfig, storage: StorageConfig, names: Set[str], ids: Set[str]
) -> tuple[str, str] | None:
    """(id, location) of the first of the ids that occurs in files with these names; None if none occurs."""
    for file in find_corpus_files(corpus, storage).readable:
        if file.name in names and corpus.id is not None:
            for row, text in record_ids(file, corpus.id):
                if text in ids:
                    return text, f"row {row} of {file.uri}"
    return None


def record_ids(file: SourceFile, column: str) -> Iterator[tuple[int, str]]:
    """(row, id as text), without ids that are not Unicode, whose rows are skipped.

    Raises:
        UserError: an id is not a string or an integer.
    """
    for row, record in read_records(file, [column]):
        value = record[column]
        if isinstance(value, bool) or not isinstance(value, str | int):
            shown = "null" if value is None else repr(value)
            raise UserError(
                f"the id in row {row} of {file.uri} (column {column!r}) is {shown}; give every row a string or an "
                f"integer, or leave corpus.id out"
            )
        if isinstance(value, int) or is_unicode(value):
            yield row, str(value)


def check_unique(
    column: str, files: Sequence[SourceFile], hashes: IdHashes, copies: Sequence[Sequence[str]]
) -> None:
    """Raise UserError for the first id that occurs twice; ids are read again only if hashes are equal.

    Args:
        column: the column of ids.
        files: the files with the ids.
        hashes: hashes of all ids.
        copies: groups of names of files with equal content, which explain why ids occur twice.
    """
    repeated = hashes.repeated()
    if not repeated:
        return
    locations: dict[str, tuple[int, SourceFile]] = {}
    for file in files:
        for row, text in record_ids(file, column):
            if hash_id(text) not in repeated:
                continue
            if text in locations:
                first_row, first = locations[text]
                is_copy = any({first.name, file.name} <= set(names) for names in copies if first.name != file.name)
                advice = "; these files have the same content: remove one" if is_copy else "; make ids unique"
                raise UserError(
                    f"the id {text!r} (column {column!r}) is in row {first_row} of {first.uri} and again in row "
                    f"{row} of {file.uri}{advice} or leave corpus.id out"
                )
            locations[text] = row, file
