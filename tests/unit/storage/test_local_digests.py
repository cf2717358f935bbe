"""Digests of local files: right for every version of a file, and kept for large ones."""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorif_core.storage import local_digests
from lorif_core.storage.local_digests import file_digests


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test alone, in which digests of all files are kept."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORIF_CACHE", str(folder))
    monkeypatch.setattr(local_digests, "KEPT_FROM", 1)
    monkeypatch.setattr(local_digests, "_SETTLED_SECONDS", 0.05)
    yield folder / "digests"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order."""
    files: list[Path] = []
    computed = local_digests._computed

    def noting(path: Path) -> str:
        files.append(path)
        return computed(path)

    monkeypatch.setattr(local_digests, "_computed", noting)
    return files


def digest_in_new_process(path: Path) -> str:
    local_digests._digest_of_version.cache_clear()
    return file_digests([path])[path.name]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_by_the_first_process_only(tmp_path: Path, read: list[Path]) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    assert [digest_in_new_process(weights) for _ in range(3)] == [sha256(weights)] * 3
    assert len(read) == 1


def test_processes_at_the_same_time_read_a_file_once(tmp_path: Path, read: list[Path]) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(digest_in_new_process, [weights] * 4))
    assert digests == [sha256(weights)] * 4
    assert len(read) == 1


def test_a_change_that_keeps_size_inode_and_time_of_the_content_is_seen(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    digest_in_new_process(weights)
    before = weights.stat()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    with weights.open("r+b") as file:
        file.write(b"changed")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (7, before.st_ino, before.st_mtime_ns)
    assert digest_in_new_process(weights) == sha256(weights)


def test_a_replaced_file_and_a_link_to_another_are_seen(tmp_path: Path) -> None:
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "model.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    for target in (first, second):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert digest_in_new_process(link) == sha256(target)
    second.replace(first)
    assert digest_in_new_process(first) == sha256(first)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": 3, "sha256": "x"}', "\x00"])
def test_a_damaged_digest_is_replaced(tmp_path: Path, cache: Path, content: str) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    digest_in_new_process(weights)
    (kept,) = cache.glob("*.json")
    kept.write_text(content)
    assert digest_in_new_process(weights) == sha256(weights)
    assert sha256(weights) in kept.read_text()


def test_without_a_cache_that_can_be_written_files_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[Path]
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setenv("LORIF_CACHE", str(weights))  # a file is no folder
    assert [digest_in_new_process(weights) for _ in range(2)] == [sha256(weights)] * 2
    assert len(read) == 2


def test_a_file_from_the_future_is_not_kept(tmp_path: Path, read: list[Path]) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    os.utime(weights, (time.time() + 3600,) * 2)
    assert [digest_in_new_process(weights) for _ in range(2)] == [sha256(weights)] * 2
    assert len(read) == 2
