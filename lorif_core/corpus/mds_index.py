"""The `index.json` of an MDS folder names its shards, so that one which was not copied is missed."""

import json
import posixpath
from collections.abc import Set

from lorif_core.errors import DamagedFileError
from lorif_core.storage.filesystem import SourceFile, storage_errors

INDEX = "index.json"


def read_index(file: SourceFile) -> list[tuple[str, ...]] | None:
    """The paths that each shard may have, without compression and with it; None if it is no index of MDS."""
    with storage_errors(file.uri), file.open() as raw:
        content = raw.read()
    folder = posixpath.dirname(file.path)
    try:
        shards = [shard for shard in json.loads(content)["shards"] if shard["format"] == "mds"]
        return [
            tuple(posixpath.join(folder, shard[key]["basename"]) for key in ("raw_data", "zip_data") if shard[key])
            for shard in shards
        ]
    except (ValueError, KeyError, TypeError):
        return None


def missing_shards(shards: list[tuple[str, ...]], paths: Set[str]) -> list[tuple[str, DamagedFileError]]:
    """(path, error) of the shards of which no file is among the paths."""
    return [
        (names[0], DamagedFileError(f"{names[0]} is missing, although {INDEX} beside it names it; restore it"))
        for names in shards
        if names and paths.isdisjoint(names)
    ]
