"""Invariant: garbage is what nothing refers to; collecting it changes no generation and no build under way."""

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
from lorif_core.storage.lease import Lease, hold
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
        place = Store(str(tmp_path / "index"))
    else:
        server: MotoServer = request.getfixturevalue("s3_place")
        place = Store(f"s3://{BUCKET}/gc-{tmp_path.name}", StorageConfig(**server.storage()))
    place.create(SPEC)
    yield place


def receipts(store: Store) -> Receipts:
    return Receipts(store.uri, store.storage)


def files(store: Store) -> set[str]:
    return {file.name for file in DataFiles(store.uri, store.storage).listed("factors")}


def collect(store: Store, keep: int = 5) -> None:
    with hold(store.uri, store.storage, "gc"):
        remove_garbage(store, find_garbage(store, keep, held=True))


def test_orphans_go_and_what_is_committed_or_awaited_stays(store: Store) -> None:
    commit(store, 0)
    store.publish(generation(store, 1))
    orphan = finished(store, 1)  # a worker died before its receipt
    awaited = finished(store, 2)  # a driver died before its wave
    receipts(store).write(awaited, SPEC.hash)
    lost = finished(store, 3)  # a receipt whose file somebody removed
    receipts(store).write(lost, SPEC.hash)
    DataFiles(store.uri, store.storage).remove(
        file for file in DataFiles(store.uri, store.storage).listed("factors") if file.name == lost.files[0][0]
    )
    found = find_garbage(store, 5)
    assert [file.name for file in found.files] == [orphan.files[0][0]] and found.bytes == orphan.files[0][1]
    assert len(found.receipts) == 1 and not found.generations and not found.curvatures
    before = files(store)
    collect(store)
    assert files(store) == before - {orphan.files[0][0]}
    assert receipts(store).of_shards(SPEC.hash, [shard(2).key, shard(3).key]) == [awaited]
    store.rows.commit_wave([awaited], store.rows.version())
    assert store.rows.counts() == (8, 24) and store.rows.counts(store.latest().factors_version) == (4, 12)


def test_expired_generations_go_with_their_rows_and_fits(store: Store) -> None:
    for number in range(1, 4):
        commit(store, number)
        keep_only(store, number)
        store.publish(generation(store, number, f"fit-{number}"))
    newest = store.latest()
    found = find_garbage(store, 2)
    assert found.generations == (1,)
    collect(store, keep=2)
    assert [kept.generation for kept in store.generations()] == [2, 3]
    assert store.rows.counts(newest.factors_version) == (4, 12)
    assert store.rows.counts(store.generations()[0].factors_version) == (4, 12)
    assert len(files(store)) == 2
    assert find_garbage(store, 2).files == ()


def test_covariances_go_with_the_last_generation_that_folds_with_them(store: Store) -> None:
    commit(store, 0)
    names = []
    for number in range(1, 4):
        side = torch.eye(2, dtype=torch.float64) * number
        covariances = Covariances({(0, "in"): side, (0, "out"): side}, tokens=9, examples=1)
        store.covariances.write(covariances, SPEC.layers)
        store.covariances.write(covariances, SPEC.layers)
        names.append(covariances.digest())
        made = generation(store, number)
        parts = [replace(made.newest, metric=covariances.digest())]
        store.publish(replace(made, parts_json=generation_of(parts, **COLUMNS).parts_json))
    assert find_garbage(store, 3).covariances == () and find_garbage(store, 2).covariances == (names[0],)
    collect(store, keep=1)
    assert store.covariances.specs() == {names[2]: None}
    kept = store.covariances.read(names[2])
    assert kept is not None and kept.tokens == 9


def test_files_of_a_build_under_way_are_no_garbage(store: Store) -> None:
    commit(store, 0)
    before = finished(store, 1)
    with Lease(Objects(store.uri, store.storage), "build"):
        # the store's clock counts whole seconds
        orphan_later = finished(store, 2)
        names = {file.name for file in find_garbage(store, 5).files}
    assert orphan_later.files[0][0] not in names
    assert {before.files[0][0], orphan_later.files[0][0]} <= {file.name for file in find_garbage(store, 5).files}


def test_unfinished_uploads_are_given_up(s3_place: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage_module, "_UPLOAD_AGE", timedelta(days=-1))
    store = Store(f"s3://{BUCKET}/gc-uploads", StorageConfig(**s3_place.storage()))
    store.create(SPEC)
    client = s3_place.client()
    for key in ("gc-uploads/factors.lance/data/x.lance", "elsewhere/y"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    assert [upload.key for upload in find_garbage(store, 5).uploads] == ["gc-uploads/factors.lance/data/x.lance"]
    collect(store)
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    assert left == ["elsewhere/y"]


def test_the_command_lists_and_removes_only_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    commit(store, 0)
    orphan = finished(store, 1).files[0][0]
    code, out, _ = run(capsys, "gc", store.uri)
    assert code == 0 and orphan in out and "--apply" in out and orphan in files(store)
    code, out, _ = run(capsys, "gc", store.uri, "--apply", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["removed"] and told["files"] == [f"factors/{orphan}"] and orphan not in files(store)
    code, _, err = run(capsys, "gc", str(tmp_path / "nothing"))
    assert code == 2 and "does not exist" in err and not (tmp_path / "nothing").exists()


def test_a_place_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_garbage(Store(str(tmp_path / "index")), 5)
