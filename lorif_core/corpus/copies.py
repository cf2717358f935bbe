"""Finds files of equal content, whose rows an index has once for every name."""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence, Set

import xxhash
from fsspec.implementations.local import LocalFileSystem

from lorif_core.storage.filesystem import SourceFile, storage_errors

_ENDS_BYTES = 2**14
_READ_BYTES = 2**20


def find_copies(files: Sequence[SourceFile], new: Set[str]) -> tuple[tuple[str, ...], ...]:
    """Names of files with equal content, one tuple for each content, both sorted.

    Objects are equal if ETag and size are. Objects that were uploaded in parts of different sizes have different
    ETags and count as different. Local files of one size are compared by their ends, and then whole.

    Args:
        files: the files to compare.
        new: names of files that were not compared before; a group without any of them is not looked at.
    """
    return tuple(sorted(tuple(sorted(file.name for file in group)) for group in _equal(files, new)))


def _equal(files: Sequence[SourceFile], new: Set[str]) -> list[list[SourceFile]]:
    keys: tuple[Callable[[SourceFile], Hashable], ...] = (lambda file: (file.etag, file.size),)
    if files and isinstance(files[0].fs, LocalFileSystem):
        keys = (lambda file: file.size, _ends, _Digests())
    groups = [[file for file in files if file.size]]
    for key in keys:
        groups = [part for group in groups for part in _split(group, key, new)]
    return groups


def _split(
    group: Sequence[SourceFile], key: Callable[[SourceFile], Hashable], new: Set[str]
) -> list[list[SourceFile]]:
    parts: defaultdict[Hashable, list[SourceFile]] = defaultdict(list)
    for file in group:
        parts[key(file)].append(file)
    return [part for part in parts.values() if len(part) > 1 and any(file.name in new for file in part)]


def _ends(file: SourceFile) -> bytes:
    with storage_errors(file.uri), file.open() as raw:
        start = raw.read(_ENDS_BYTES)
        raw.seek(max(file.size - _ENDS_BYTES, 0))
        return start + raw.read(_ENDS_BYTES)


class _Digests:
    """Digests of whole files; what several links lead to is read once."""

    def __init__(self) -> None:
        self._digests: dict[tuple[int, int], bytes] = {}

    def __call__(self, file: SourceFile) -> bytes:
        with storage_errors(file.uri), file.open() as raw:
            status = os.fstat(raw.fileno())
            identity = status.st_dev, status.st_ino
            if identity not in self._digests:
                digest = xxhash.xxh3_128()
                while block := raw.read(_READ_BYTES):
                    digest.update(block)
                self._digests[identity] = digest.digest()
        return self._digests[identity]
