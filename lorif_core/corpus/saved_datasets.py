"""Folders that `save_to_disk` of Hugging Face datasets wrote: their index files say which files are the dataset.

A dataset has `state.json`, whose `_data_files` names its arrow files. A `DatasetDict` has `dataset_dict.json`,
which names its splits, each of which is the folder of a dataset. Other arrow files there are left over from `map`,
or from a run that was interrupted.
"""

import json
import posixpath
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from lorif_core.errors import DamagedFileError
from lorif_core.storage.filesystem import SourceFile, storage_errors

STATE, SPLITS = "state.json", "dataset_dict.json"
LEFT_OVER = "arrow files that state.json of their saved dataset does not name"
OTHER_SPLIT = "files of splits that dataset_dict.json does not name"
UNUSABLE = "arrow files of a saved dataset whose state.json cannot be used"


@dataclass(slots=True)
class SavedDatasets:
    """The contents of index files.

    Attributes:
        data_files: the files of each dataset, by the path of its folder; None if its index file cannot be used.
        splits: the folders of the splits of each `DatasetDict`, by the path of its folder.
        damaged: (index file, what is wrong with it).
    """

    data_files: dict[str, frozenset[str] | None] = field(default_factory=dict)
    splits: dict[str, frozenset[str]] = field(default_factory=dict)
    damaged: list[tuple[SourceFile, DamagedFileError]] = field(default_factory=list)

    def reason_against(self, path: str) -> str | None:
        """Why a file is not read; None if it is, or if no index file has a say in it."""
        folder = posixpath.dirname(path)
        splits = self.splits.get(posixpath.dirname(folder))
        if splits is not None and folder in self.data_files and folder not in splits:
            return OTHER_SPLIT
        if folder not in self.data_files or not path.lower().endswith(".arrow"):
            return None
        files = self.data_files[folder]
        if files is None:
            return UNUSABLE
        return None if path in files else LEFT_OVER

    def missing(self, paths: Set[str]) -> list[tuple[str, DamagedFileError]]:
        """(path, error) of files and splits that an index file names and that are not among the listed paths."""
        files = [(file, STATE) for names in self.data_files.values() for file in names or ()]
        splits = [(f"{folder}/{STATE}", SPLITS) for names in self.splits.values() for folder in names]
        left_out = {
            folder
            for parent, names in self.splits.items()
            for folder in self.data_files
            if posixpath.dirname(folder) == parent and folder not in names
        }
        return [
            (path, DamagedFileError(f"{path} is missing, although {index} of its dataset names it; restore it"))
            for path, index in sorted(files + splits)
            if path not in paths and posixpath.dirname(path) not in left_out
        ]


def read_saved_datasets(indexes: Iterable[SourceFile]) -> SavedDatasets:
    """Read the files `state.json` and `dataset_dict.json`; those of other programs have no say."""
    saved = SavedDatasets()
    for index in indexes:
        folder, name = posixpath.split(index.path)
        try:
            raw = _read(index)
            if name == STATE and isinstance(raw.get("_data_files"), list):
                saved.data_files[folder] = _data_files(index, raw, folder)
            elif name == SPLITS and isinstance(raw.get("splits"), list):
                saved.splits[folder] = frozenset(f"{folder}/{split}" for split in raw["splits"])
        except DamagedFileError as damage:
            saved.damaged.append((index, damage))
            if name == STATE:
                saved.data_files[folder] = None
    return saved


def _read(index: SourceFile) -> dict[str, Any]:
    with storage_errors(index.uri), index.open() as file:
        content = file.read()
    try:
        raw = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        raise DamagedFileError(
            f"{index.uri} is not valid JSON, so the files of its dataset are not known; restore it"
        ) from None
    return raw if isinstance(raw, dict) else {}


def _data_files(index: SourceFile, raw: dict[str, Any], folder: str) -> frozenset[str]:
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in raw["_data_files"]]
    for name in names:
        if not isinstance(name, str) or posixpath.basename(name) != name or name in ("", ".", ".."):
            raise DamagedFileError(
                f"{index.uri} names the data file {name!r}, which is not a file of its folder; save it again"
            )
    if raw.get("_indices_data_files"):
        raise DamagedFileError(
            f"{index.uri} selects rows by _indices_data_files, which is not supported; load the dataset, and save "
            f"it again after flatten_indices()"
        )
    return frozenset(f"{folder}/{name}" for name in names)
