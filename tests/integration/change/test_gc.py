"""Invariant: nothing refers to garbage; collecting it changes no generation and no running build."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle import garbage as garbage_module
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.lifecycle.verify import verify
from lorif_core.storage.lease import Lease, hold_lease
from lorif_core.storage.objects import Objects
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.generation import generation_of, now
from lorif_core.tables.receipts import Receipts
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.lorif import run
from tests.integration.s3 import BUCKET
from tests.unit.tables.small_store import SPEC, commit, finished, generation, keep_only, shard

COLUMNS: dict[str, Any] = {
    "generation": 1, "created_at": now(), "factors_version": 1, "curvature_version": 1, "coverage_json": "{}",
    "skipped_json": "[]", "timings_json": "{}",
}  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty index, on a disk and in an object store."""
    if request.param == "local":
        store = Store(str(tmp_path / "index"))
    else:
        server: MotoServer = request.getfixturevalue("s3_server")
        store = Store(f"s3://{BUCKET}/gc-{tmp_path.name}", StorageConfig(**server.storage()))
    store.create(SPEC)
    yield store


def receipts(store: Store) -> Receipts:
    return Receipts(store.uri, store.storage)


def files(store: Store) -> set[str]:
    return {file.name for file in DataFiles(store.uri, store.storage).list_files("factors")}


def collect(store: Store, keep: int = 5) -> None:
    with hold_lease(store.uri, store.storage, "gc"):
        remove_garbage(store, find_garbage(store, keep, lease_held=True))


def test_orphans_are_removed_and_committed_or_adoptable_files_stay(store: Store) -> None:
    commit(store, 0)
    store.publish(generation(store, 1))
    orphan = finished(store, 1)  # a worker died before it wrote the receipt
    adoptable = finished(store, 2)  # a driver died before it committed the wave
    receipts(store).write(adoptable, SPEC.hash)
    incomplete = finished(store, 3)  # the file of a receipt was removed
    receipts(store).write(incomplete, SPEC.hash)
    data = DataFiles(store.uri, store.storage)
    data.remove(file for file in data.list_files("factors") if file.name == incomplete.files[0][0])
    garbage = find_garbage(store, 5)
    assert [file.name for file in garbage.files] == [orphan.files[0][0]] and garbage.bytes == orphan.files[0][1]
    assert len(garbage.receipts) == 1 and not garbage.generations and not garbage.curvatures
    before = files(store)
    collect(store)
    assert files(store) == before - {orphan.files[0][0]}
    assert receipts(store).finished(SPEC.hash, {shard(2).key, shard(3).key}) == [adoptable]
    store.rows.commit_wave([adoptable], store.rows.version())
    assert store.rows.counts() == (8, 24) and store.rows.counts(store.latest().factors_version) == (4, 12)


def test_expired_generations_are_removed_with_their_rows_and_fits(store: Store) -> None:
    for number in range(1, 4):
        commit(store, number)
        keep_only(store, number)
        store.publish(generation(store, number, f"fit-{number}"))
    newest = store.latest()
    assert find_garbage(store, 2).generations == (1,)
    collect(store, keep=2)
    assert [retained.generation for retained in store.generations()] == [2, 3]
    assert store.rows.counts(newest.factors_version) == (4, 12)
    assert store.rows.counts(store.generations()[0].factors_version) == (4, 12)
    assert len(files(store)) == 2
    assert find_garbage(store, 2).files == ()
    found = verify(store)  # the fits of this test were never written
    assert {item.table for item in found.damage} == {"curvature"} and found.rows == 8 and not found.unchecked_files


def test_covariances_are_removed_with_the_last_generation_that_uses_them(store: Store) -> None:
    commit(store, 0)
    names = []
    for number in range(1, 4):
        side = torch.eye(2, dtype=torch.float64) * number
        covariances = Covariances({(0, "in"): side, (0, "out"): side}, tokens=9, examples=1)
        (name,) = {store.whitenings.add(covariances, SPEC.layers) for _ in range(2)}
        names.append(name)
        unpublished = generation(store, number)
        parts = [replace(unpublished.newest, metric=name)]
        store.publish(replace(unpublished, parts_json=generation_of(parts, **COLUMNS).parts_json))
    assert find_garbage(store, 3).covariances == () and find_garbage(store, 2).covariances == (names[0],)
    collect(store, keep=1)
    assert store.whitenings.specs() == {names[2]: None}
    retained = store.whitenings.covariances(names[2])
    assert retained is not None and retained.tokens == 9


def test_files_of_a_running_build_are_not_garbage(store: Store) -> None:
    commit(store, 0)
    before = finished(store, 1)
    with Lease(Objects(store.uri, store.storage), "build"):
        # `before` is not asserted here: the store's clock has a resolution of one second
        during = finished(store, 2)
        names = {file.name for file in find_garbage(store, 5).files}
    assert during.files[0][0] not in names
    assert {before.files[0][0], during.files[0][0]} <= {file.name for file in find_garbage(store, 5).files}


def test_unfinished_uploads_are_aborted(s3_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage_module, "_UPLOAD_AGE", timedelta(days=-1))
    store = Store(f"s3://{BUCKET}/gc-uploads", StorageConfig(**s3_server.storage()))
    store.create(SPEC)
    client = s3_server.client()
    for key in ("gc-uploads/factors.lance/data/x.lance", "elsewhere/y"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    assert [upload.key for upload in find_garbage(store, 5).uploads] == ["gc-uploads/factors.lance/data/x.lance"]
    collect(store)
    remaining = [upload["Key"] for upload in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    assert remaining == ["elsewhere/y"]


def test_the_command_removes_only_with_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    commit(store, 0)
    orphan = finished(store, 1).files[0][0]
    code, out, _ = run(capsys, "gc", store.uri)
    assert code == 0 and orphan in out and "--apply" in out and orphan in files(store)
    code, out, _ = run(capsys, "gc", store.uri, "--apply", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["removed"] and result["files"] == [f"factors/{orphan}"]
    assert orphan not in files(store)
    code, _, err = run(capsys, "gc", str(tmp_path / "nothing"))
    assert code == 2 and "does not exist" in err and not (tmp_path / "nothing").exists()


def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_garbage(Store(str(tmp_path / "index")), 5)
