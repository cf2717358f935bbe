"""The files of a corpus: which are read, which cannot be, and which are no part of it. Each one is in one list."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.mds_index import INDEX, missing_shards, read_index
from lorif_core.corpus.records import ENDINGS
from lorif_core.corpus.saved_datasets import SPLITS, STATE, SavedDatasets, read_saved_datasets
from lorif_core.corpus.token_files import is_token_file, reason_against, with_revision
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import HUB_SCHEME, SourceFile, UnreadFile, Walk, walk_files

COMPANION = "companions of a dataset, which hold no rows"
NO_ENDING = "files without an ending"

_COMPANIONS = {
    STATE, SPLITS, "dataset_info.json", "dataset_infos.json", "croissant.json", "readme.md", "license",
    "license.txt", "license.md", ".gitattributes", ".gitignore", ".ds_store", "_success", "_metadata",
    "_common_metadata",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class CorpusFiles:
    """The files at the URI of a corpus, each sorted by name. A name that is not UTF-8 has its bytes escaped.

    Attributes:
        readable: files of a supported format. One that ends in `.json` is read only if it holds JSON lines.
        damaged: (name, error) of files that should be read and cannot be.
        unread: files that are no part of the corpus.
    """

    readable: tuple[SourceFile, ...]
    damaged: tuple[tuple[str, DamagedFileError], ...]
    unread: tuple[UnreadFile, ...]


def find_corpus_files(corpus: CorpusConfig, storage: StorageConfig) -> CorpusFiles:
    """List the files of a corpus.

    Raises:
        UserError: `corpus.uri` does not exist, or cannot be read.
    """
    walk = _walk(corpus.uri, storage)
    saved = read_saved_datasets(_index_files(walk))
    _check_split(corpus.uri, walk, saved)
    readable: list[SourceFile] = []
    unread = [UnreadFile(_shown(file.name), _companion(file.name) or file.reason) for file in walk.unread]
    damaged = [(_shown(index.name), damage) for index, damage in saved.damaged]
    paths = {file.path for file in walk.files}
    indexes = _mds_indexes(walk)
    if walk.is_folder:
        missing = saved.missing(paths) + [
            lost for shards in indexes.values() for lost in missing_shards(shards, paths)
        ]
        damaged += [(_shown(posixpath.relpath(path, walk.root)), damage) for path, damage in missing]

    def exists(path: str) -> bool:
        return path in paths or (not walk.is_folder and walk.look_up(path) is not None)

    for file in walk.files:
        reason = COMPANION if file.path in indexes else saved.reason_against(file.path)
        if reason is None:
            is_token = is_token_file(file.name)
            reason = reason_against(file, corpus, exists) if is_token else _reason_against(file.name)
        if reason is not None:
            unread.append(UnreadFile(_shown(file.name), reason))
        elif _shown(file.name) != file.name:
            damage = DamagedFileError(
                f"the name of {_shown(file.uri)} is not UTF-8, so it cannot be read; rename it"
            )
            damaged.append((_shown(file.name), damage))
        else:
            readable.append(_versioned(file, corpus))
    return CorpusFiles(
        tuple(readable),
        tuple(sorted(damaged, key=lambda item: item[0])),
        tuple(sorted(unread, key=lambda file: file.name)),
    )


def _check_split(uri: str, walk: Walk, saved: SavedDatasets) -> None:
    """Raise UserError for a `DatasetDict` of several splits: a model is trained on one of them."""
    splits = sorted(map(posixpath.basename, saved.splits.get(walk.root, ())))
    if walk.is_folder and len(splits) > 1:
        folder = uri.rstrip("/")
        raise UserError(
            f"{uri} is a DatasetDict with the splits {', '.join(splits)}; name one, such as "
            f"{folder}/{splits[-1]}, or all of them as {folder}/*/*.arrow"
        )


def _walk(uri: str, storage: StorageConfig) -> Walk:
    if not uri.startswith(HUB_SCHEME):
        return walk_files(uri, storage)
    from lorif_core.corpus.hub_datasets import walk_dataset  # the hub's client takes half a second to import

    return walk_dataset(uri, storage)


def _mds_indexes(walk: Walk) -> dict[str, list[tuple[str, ...]]]:
    """The paths of each shard that an index of MDS names, by the path of the index."""
    candidates = [file for file in walk.files if posixpath.basename(file.name) == INDEX] if walk.is_folder else []
    read = {file.path: read_index(file) for file in candidates}
    return {path: shards for path, shards in read.items() if shards is not None}


def _versioned(file: SourceFile, corpus: CorpusConfig) -> SourceFile:
    """The file with a tag for all that its rows depend on."""
    try:
        return with_revision(file, corpus.binary)
    except FileNotFoundError:
        ending = corpus.binary.offsets
        raise UserError(
            f"{file.uri} has no file of offsets beside it; write the one that ends in {ending}, or correct "
            f"corpus.binary.offsets"
        ) from None


def _index_files(walk: Walk) -> Iterator[SourceFile]:
    """The index files of saved datasets that have a say in the files of a listing."""
    if walk.is_folder:
        yield from (file for file in walk.files if posixpath.basename(file.name) in (STATE, SPLITS))
    elif walk.is_glob:  # it need not match them
        folders = {posixpath.dirname(file.path) for file in walk.files if file.name.lower().endswith(".arrow")}
        around = {posixpath.dirname(folder) for folder in folders}
        paths = [*(f"{folder}/{STATE}" for folder in folders), *(f"{folder}/{SPLITS}" for folder in around)]
        for path in sorted(paths):
            file = walk.look_up(path)
            if file is not None:
                yield file


def _reason_against(name: str) -> str | None:
    """Why a file is not read, judging by its name; None if it is."""
    companion = _companion(name)
    if companion is not None or name.lower().endswith(ENDINGS):
        return companion
    stem, ending = posixpath.splitext(posixpath.basename(name))
    if ending.lower() in _COMPRESSED:
        ending = posixpath.splitext(stem)[1] + ending
    return f"files that end in {_shown(ending)}" if ending else NO_ENDING


def _companion(name: str) -> str | None:
    base = posixpath.basename(name).lower()
    return COMPANION if base in _COMPANIONS or base.endswith(".crc") else None


def _shown(name: str) -> str:
    """A name for messages and tables; the bytes of a local name that is not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
