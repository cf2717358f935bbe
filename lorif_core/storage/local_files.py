"""Local files as a corpus has them: links are followed, and what cannot be read is listed with the reason."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

HIDDEN = "hidden, as their names begin with . or _"
BROKEN_LINK = "links to nothing"
LOOP = "links to a folder that contains them"
FOLLOWED = "links in a folder that is also read under another name"
NOT_A_FILE = "pipes, sockets and devices"
FORBIDDEN = "files and folders that may not be read"


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    depth: int
    hidden: bool
    ancestors: frozenset[tuple[int, int]]


class LocalFiles(LocalFileSystem):
    """Finds also what links lead to; fsspec's own class skips links, and folders that it may not list.

    `find`, and therefore `glob`, lists an entry that cannot be read with the type "other" and a `reason`. A loop
    of links ends where it would enter a folder around it. Each link to a folder is followed once, however many
    names lead to it, so that links which cross do not multiply.
    """

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """As fsspec's `find`: sorted paths, or with `detail` their infos by path."""
        path = self._strip_protocol(path)
        infos = {info["name"]: info for info in self._walk(path, maxdepth)}
        found = {name: infos[name] for name in sorted(infos) if withdirs or infos[name]["type"] != "directory"}
        return found if detail else list(found)

    def _walk(self, root: str, maxdepth: int | None) -> Iterator[dict[str, Any]]:
        try:
            top = os.stat(root)  # noqa: PTH116
        except FileNotFoundError:
            return
        yield _info(root, top)
        followed: set[tuple[int, int]] = set()
        folders = [_Folder(root, 1, False, frozenset([_identity(top)]))] if stat.S_ISDIR(top.st_mode) else []
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder.path) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except PermissionError:
                if folder.path == root:
                    raise
                yield _unread(folder.path, FORBIDDEN)
                continue
            inner = []
            for entry in entries:
                described = _describe(entry, folder, followed)
                if described is None:
                    continue
                info, identity = described
                yield info
                if info["type"] == "directory" and (maxdepth is None or folder.depth < maxdepth):
                    hidden = folder.hidden or is_hidden(entry.name)
                    ancestors = folder.ancestors | {identity}
                    inner.append(_Folder(entry.path, folder.depth + 1, hidden, ancestors))
            folders += reversed(inner)


def _describe(
    entry: os.DirEntry[str], folder: _Folder, followed: set[tuple[int, int]]
) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """The info of an entry, and the identity of what it leads to; None if it was removed meanwhile."""
    try:
        own = _identity(entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return None
    try:
        status = entry.stat()
    except PermissionError:
        return _unread(entry.path, FORBIDDEN), own
    except OSError:  # there is nothing, or only a circle of links
        return _unread(entry.path, BROKEN_LINK), own
    if entry.is_symlink() and stat.S_ISDIR(status.st_mode):
        if folder.hidden or is_hidden(entry.name):  # nothing behind it would be read
            return _unread(entry.path, HIDDEN), own
        if _identity(status) in folder.ancestors:
            return _unread(entry.path, LOOP), own
        if own in followed:
            return _unread(entry.path, FOLLOWED), own
        followed.add(own)
    return _info(entry.path, status), _identity(status)


def _info(path: str, status: os.stat_result) -> dict[str, Any]:
    if stat.S_ISDIR(status.st_mode):
        kind = {"type": "directory"}
    else:
        kind = {"type": "file"} if stat.S_ISREG(status.st_mode) else {"type": "other", "reason": NOT_A_FILE}
    return {"name": path, "size": status.st_size, "mtime": status.st_mtime, **kind}


def _unread(path: str, reason: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "mtime": 0.0, "type": "other", "reason": reason}


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with `.` or `_`."""
    return any(part.startswith((".", "_")) for part in name.split("/"))
