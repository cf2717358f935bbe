"""SHA-256 of local files. Those of large files are kept in the cache of the node, so that each is read once.

A kept digest counts while the file has the same inode, size and times. The time of the last change of its inode is
among them; unlike the time of its content, no program can set it back.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from lorif_core.errors import UserError
from lorif_core.storage.cache_folder import cache_folder

log = logging.getLogger(__name__)

KEPT_FROM = 64 * 2**20
"""Bytes of the smallest file whose digest is kept; a smaller one is read about as fast."""

_BLOCK = 8 * 2**20
_THREADS = 4  # hashlib releases the GIL
_SETTLED_SECONDS = 2.0  # within the resolution of its times a file may change and keep them


def file_digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files of one folder, by name."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip([path.name for path in paths], pool.map(_file_digest, paths), strict=True))


def _file_digest(path: Path) -> str:
    return _digest_of_version(path.resolve(), _version(path))


def _version(path: Path) -> tuple[int, ...]:
    """Numbers that change with each write to a file."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=4096)
def _digest_of_version(path: Path, version: tuple[int, ...]) -> str:
    _, _, size, *_ = version
    kept = _kept_path(path) if size >= KEPT_FROM else None
    if kept is None:
        return _computed(path)
    return _read(kept, version) or _computed_once(path, version, kept)


def _computed_once(path: Path, version: tuple[int, ...], kept: Path) -> str:
    """Compute a digest while other processes of this node wait; each computes it if no cache can be written."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(kept.with_suffix(".lock")):
            return _read(kept, version) or _computed_and_kept(path, version, kept)
    except OSError as error:
        log.info("no digest of %s is kept: %s", path.name, error)
        return _computed(path)


def _computed_and_kept(path: Path, version: tuple[int, ...], kept: Path) -> str:
    is_settled = _wait_until_settled(version)
    digest = _computed(path)
    if is_settled and _version(path) == version:
        draft = kept.with_suffix(".draft")
        draft.write_text(json.dumps({"version": version, "sha256": digest}))
        draft.replace(kept)
    return digest


def _wait_until_settled(version: tuple[int, ...]) -> bool:
    """Whether the last change of a file is long enough ago; waits for a change of just now."""
    age = time.time() - max(version[-2:]) / 1e9
    if 0 <= age < _SETTLED_SECONDS:
        time.sleep(_SETTLED_SECONDS - age)
    return age >= 0  # a file from the future has the clock of another machine


def _computed(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _kept_path(path: Path) -> Path | None:
    """Where the digest of a file is kept; None if this user has no cache."""
    try:
        return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    except UserError:
        return None


def _read(kept: Path, version: tuple[int, ...]) -> str | None:
    """The kept digest of this version of the file; None if there is none, or if it cannot be read."""
    try:
        content = json.loads(kept.read_text())
        return str(content["sha256"]) if content["version"] == list(version) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("the kept digest %s cannot be used: %s", kept, error)
        return None
