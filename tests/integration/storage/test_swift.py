"""Invariant: on a real store, builds that run one at a time store the same rows as on a disk, however often one is
killed. The store checks credentials, keeps large objects in parts and does not apply If-None-Match atomically.
"""

import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.settings import PREFECT_API_URL

import lorif_core as lc
from flows.build import build
from lorif_core.config import ComputeConfig, Config, CorpusConfig, ModelConfig, StorageConfig
from lorif_core.corpus.shards import list_shards, read_rows
from lorif_core.errors import LorifError
from lorif_core.lifecycle import garbage as garbage_module
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.model.checkpoint import locate
from lorif_core.storage import connection, probe
from lorif_core.storage.lease import Lease, LeaseHeldError, current_holder, hold_lease
from lorif_core.storage.node_cache import _PART_BYTES
from lorif_core.storage.objects import Objects
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.datasets import Tables
from lorif_core.tables.store import Store
from tasks.cluster import cluster
from tests.integration.conftest import MakeConfig
from tests.integration.lorif import LORIF, run
from tests.integration.rows import stored_rows
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, fill_bucket, s3_config, shard_file
from tests.patience import patience
from tests.servers import swift as swift_module
from tests.servers.proxy import FaultProxy
from tests.servers.swift import GUEST, OWNER, STRANGER, SwiftServer

pytestmark = pytest.mark.swift

SHARDS = 12
CORPUS = f"corpus-{SHARDS}"
PUBLIC = "lorif-public"  # every user may read it
RACES = 24  # if a third of the races have one winner, all of them have with probability 1e-11
TTL = 12.0  # of a lease: renewed every two seconds, and longer than the settling time
QUERY = "the cat sees"


@pytest.fixture(scope="module")
def swift(model_folder: Path) -> Iterator[SwiftServer]:
    """A Swift with a model and a corpus in two buckets; their owner's credentials are in the environment."""
    with SwiftServer() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment().items():
            environment.setenv(name, value)
        fill_bucket(server, model_folder, (SHARDS,))
        client = server.client()
        client.create_bucket(Bucket=PUBLIC, ACL="public-read")
        for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
            client.copy_object(Bucket=PUBLIC, Key=entry["Key"], CopySource=f"{BUCKET}/{entry['Key']}")
        yield server


@pytest.fixture(scope="module")
def swift_ray(swift: SwiftServer) -> Iterator[None]:
    """One private Ray for the module, whose workers know Swift's credentials."""
    with cluster(ComputeConfig(ray="local")):
        yield


@pytest.fixture(scope="module")
def on_disk(
    make_config: MakeConfig, prefect_server: None, swift_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """The same build with model, corpus and index on a disk."""
    folder = tmp_path_factory.mktemp("on-disk")
    (folder / "corpus").mkdir()
    for number in range(SHARDS):
        (folder / "corpus" / f"{number:03d}.jsonl").write_bytes(shard_file(number))
    config = make_config(
        folder / "index",
        corpus={"uri": str(folder / "corpus")},
        curvature={"rank": 8, "power_iterations": 1},
    )
    build(config)
    return config


@pytest.fixture
def storage(swift: SwiftServer) -> StorageConfig:
    return StorageConfig(**swift.storage())


UseCredentials = Callable[..., None]


@pytest.fixture
def use_credentials(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[UseCredentials]:
    """Sets the credentials of a user and drops connections with the previous ones."""

    def forget() -> None:
        connection.S3FileSystem.clear_instance_cache()
        connection._known_buckets.clear()

    def use(user: str, **changes: str) -> None:
        for name, value in {**swift.environment(user), **changes}.items():
            monkeypatch.setenv(name, value)
        forget()

    yield use
    forget()


def write_config(config: Config, folder: Path, **compute: Any) -> Path:
    """A CONFIG file."""
    raw = config.model_dump(exclude_unset=True)
    raw["compute"].update(compute)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def same_scores(config: Config, other: Config) -> bool:
    """Whether two indexes give nearly equal scores; their curvatures are fitted to rows in different order."""
    answers = [lc.open_index(index.index, index.storage).scores([QUERY]) for index in (config, other)]
    first, second = (dict(zip(ids, scores[0], strict=True)) for ids, scores in answers)
    return first.keys() == second.keys() and np.allclose(
        list(first.values()), [second[name] for name in first], rtol=1e-2, atol=1e-4
    )


def test_a_swift_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift_module, "_START_SECONDS", 0.0)
    server = SwiftServer()
    with pytest.raises(LorifError, match="server of Swift did not start"):
        server.__enter__()
    assert not server.folder.exists()
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if any(str(server.folder) in word for word in line)]


# ---- authentication ------------------------------------------------------------------------------------------


def test_the_right_credentials_are_enough(
    swift: SwiftServer,
    swift_ray: None,
    use_credentials: UseCredentials,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_credentials(OWNER)
    config = s3_config(swift.url, "checked", CORPUS)
    code, out, err = run(capsys, "check", "-c", str(write_config(config, tmp_path)), "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["records"] == SHARDS * ROWS_PER_SHARD
    assert "writable; conditional put" in result["checks"]["index"]
    assert swift.client().list_objects_v2(Bucket=BUCKET, Prefix="checked/")["KeyCount"] == 0


REFUSED: dict[str, tuple[str, dict[str, str], str, list[str]]] = {
    "a wrong secret": (OWNER, {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, BUCKET, ["AWS_SECRET_ACCESS_KEY"]),
    "an unknown access key": (OWNER, {"AWS_ACCESS_KEY_ID": "lorif:nobody"}, BUCKET, ["AWS_ACCESS_KEY_ID"]),
    "the secret of another user": (GUEST, {"AWS_ACCESS_KEY_ID": OWNER}, BUCKET, ["AWS_SECRET_ACCESS_KEY"]),
    "no right to read": (GUEST, {}, BUCKET, ["/model may not be read", "give these credentials the permission"]),
    "no right to write": (GUEST, {}, PUBLIC, ["/refused may not be written", "give these credentials"]),
    "a bucket of another account": (STRANGER, {}, BUCKET, ["bucket does not exist"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_credentials_are_reported_in_one_sentence(
    case: str,
    swift: SwiftServer,
    swift_ray: None,
    use_credentials: UseCredentials,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    user, changes, bucket, expected = REFUSED[case]
    config = s3_config(swift.url, "refused", CORPUS)
    path = write_config(config, tmp_path)
    path.write_text(path.read_text().replace(BUCKET, bucket))
    use_credentials(user, **changes)
    # a build fails before it starts Prefect, and a check also tests the permission to write
    command = "check" if bucket == PUBLIC else "build"
    code, out, err = run(capsys, command, "-c", str(path), "--json")
    message = json.loads(out.splitlines()[-1]).get("error", "no error")
    assert code == 2, message
    assert f"s3://{bucket}/" in message and all(part in message for part in expected), message
    assert [line for line in err.splitlines() if line.startswith("lorif: error")] == [f"lorif: error: {message}"]
    assert not any(
        value in out + err for value in [*swift.environment().values(), "wrong-secret"] if len(value) > 12
    )
    assert swift.client().list_objects_v2(Bucket=bucket, Prefix="refused/")["KeyCount"] == 0


# ---- multipart -----------------------------------------------------------------------------------------------


def parts_of(swift: SwiftServer, key: str) -> int:
    """Number of parts in which an object was written; S3 appends it to the ETag of a multipart upload."""
    tag = swift.client().head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
    return int(tag.partition("-")[2] or 1)


def test_a_checkpoint_in_parts_is_fetched_in_ranges_and_is_the_same(
    swift: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models import gpt2

    monkeypatch.setenv("LORIF_CACHE", str(tmp_path / "cache"))
    local = tmp_path / "model"
    gpt2(n_embd=768, n_head=4).save_pretrained(local)
    weights = local / "model.safetensors"
    for file in local.iterdir():
        swift.client().upload_file(str(file), BUCKET, f"large-model/{file.name}")
    assert weights.stat().st_size > 3 * _PART_BYTES and parts_of(swift, "large-model/model.safetensors") > 3
    requests: list[str] = []
    with FaultProxy(swift.url) as proxy:
        proxy.watch = requests.append
        remote = StorageConfig(**{**swift.storage(), "endpoint": proxy.url})
        checkpoint = locate(ModelConfig(path=f"s3://{BUCKET}/large-model"), remote)
        assert checkpoint.fingerprint() == locate(ModelConfig(path=str(local)), StorageConfig()).fingerprint()
    assert (Path(checkpoint.path_with_weights()) / weights.name).read_bytes() == weights.read_bytes()
    ranges = [request for request in requests if re.match(rf"GET /{BUCKET}/large-model/{weights.name}", request)]
    assert len(ranges) == math.ceil(weights.stat().st_size / _PART_BYTES)


def test_a_fragment_in_parts_is_read_as_it_was_written(swift: SwiftServer, storage: StorageConfig) -> None:
    schema = pa.schema([("row", pa.int64()), ("codes", pa.list_(pa.float32(), 4096))])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, 1200, 100):
            codes = np.random.default_rng(start).random((100, 4096), np.float32)
            flat = pa.FixedSizeListArray.from_arrays(codes.ravel(), 4096)
            yield pa.record_batch([pa.array(range(start, start + 100), pa.int64()), flat], schema=schema)

    tables = Tables(f"s3://{BUCKET}/large-table", storage)
    tables.create("rows", schema)
    fragments = tables.write("rows", batches(), schema)
    (file,) = json.loads(fragments[0])["files"]
    assert file["file_size_bytes"] > 2 * 5 * 2**20
    assert parts_of(swift, f"large-table/rows.lance/data/{file['path']}") > 1
    tables.append("rows", {"all": fragments}, since=1)
    scanned = pa.Table.from_batches(tables.scan("rows", batch_size=64))
    assert scanned.combine_chunks() == pa.Table.from_batches(batches()).combine_chunks()
    assert DataFiles(tables.uri, storage).unfinished_uploads(timedelta(days=-1)) == []


def test_a_corpus_file_in_parts_has_the_rows_that_it_has_on_disk(
    swift: SwiftServer, storage: StorageConfig, tmp_path: Path
) -> None:
    path = tmp_path / "large.parquet"
    rng = random.Random(0)
    texts = [rng.randbytes(2000).hex() for _ in range(6000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, compression="none")
    swift.client().upload_file(str(path), BUCKET, "large-corpus/large.parquet")
    assert parts_of(swift, "large-corpus/large.parquet") > 2
    listing = list_shards(CorpusConfig(uri=f"s3://{BUCKET}/large-corpus"), storage)
    read = [record["text"] for shard in listing.shards for _, record in read_rows(shard, ["text"], storage)]
    assert len(listing.shards) > 6 and read == texts


# ---- one committer at a time ---------------------------------------------------------------------------------


def test_the_probe_detects_that_conditional_put_is_not_atomic(
    storage: StorageConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "_RACES", RACES)
    uri = f"s3://{BUCKET}/probed"
    with caplog.at_level(logging.INFO), hold_lease(uri, storage, "build") as lease:
        lease.confirm()
        assert not Objects(uri, storage).create("lease/000000000001.json", {"token": "another"}), (
            "the lease exists"
        )
    message = (
        rf"{uri}: conditional put is not atomic \(\d+ of {RACES} races had one winner\): single-committer mode, "
        rf"only the lease keeps other builds out"
    )
    assert re.search(message, caplog.text), caplog.text
    assert Objects(uri, storage).names("probe") == []


def test_one_of_several_simultaneous_processes_gets_the_lease(storage: StorageConfig) -> None:
    """Several processes may believe that they created the lease; the last writer holds it."""
    objects = Objects(f"s3://{BUCKET}/contended", storage)
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def contend() -> None:
        barrier.wait()
        try:
            with Lease(objects, "build", atomic=False, time_to_live=TTL) as lease:
                outcomes.append("held")
                time.sleep(TTL / 2)
                lease.confirm()
        except LeaseHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_second_build_is_refused_with_the_name_of_the_holder(
    swift: SwiftServer,
    storage: StorageConfig,
    prefect_server: None,
    swift_ray: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = s3_config(swift.url, "held", CORPUS)
    with Lease(Objects(config.index, storage), "build", atomic=False, time_to_live=TTL) as lease:
        holder = str(current_holder(Objects(config.index, storage)))
        code, out, _ = run(capsys, "build", "-c", str(write_config(config, tmp_path)), "--json")
        message = json.loads(out.splitlines()[-1])["error"]
        lease.confirm()
    assert code == 1 and f"in use by {holder}" in message and f"(process {os.getpid()}, " in message
    assert Store(config.index, storage).rows.spec() is None, "a refused build must not write"


def test_a_build_has_the_rows_of_one_on_disk(swift: SwiftServer, on_disk: Config) -> None:
    config = s3_config(swift.url, "built", CORPUS, compute={"workers": 2})
    generation = build(config)
    assert generation.rows == SHARDS * ROWS_PER_SHARD
    assert stored_rows(config, generation.factors_version) == stored_rows(on_disk)
    assert same_scores(config, on_disk)
    again = build(config)
    assert again == generation, "nothing has changed"


class Victim:
    """A build in a separate process group, with a private Ray that ends with the group."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.store = Store(config.index, config.storage)
        self._objects = Objects(config.index, config.storage)
        self._path = write_config(config, folder, ray="local")
        self._errors = folder / "errors.txt"

    def start(self) -> None:
        """Run `lorif build`."""
        self.process = subprocess.Popen(
            [*LORIF, "build", "-c", str(self._path), "--json"],
            stdout=subprocess.PIPE, stderr=self._errors.open("ab"), text=True, start_new_session=True,
            env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        )  # fmt: skip

    def kill_when(self, condition: Callable[[], bool]) -> None:
        """Run the build, and kill its process group as soon as the condition holds."""
        self.start()
        deadline = time.monotonic() + patience(120)
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self._errors.read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self) -> int:
        """Run the build to its end; returns the number of rows of the generation."""
        self.start()
        out, _ = self.process.communicate(timeout=patience(240))
        assert self.process.returncode == 0, self._errors.read_text()[-3000:]
        return int(json.loads(out.splitlines()[-1])["rows"])

    def has_receipts(self) -> bool:
        """Whether there are at least two receipts."""
        return len(self._objects.names("receipts")) >= 2

    def has_rows(self) -> bool:
        """Whether rows are committed."""
        return self.store.rows.spec() is not None and self.store.rows.counts()[0] > 0


def test_a_build_that_is_killed_and_run_again_has_the_same_rows_and_no_garbage(
    swift: SwiftServer, storage: StorageConfig, on_disk: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = s3_config(swift.url, "killed", CORPUS, compute={"workers": 2})
    victim = Victim(config, tmp_path)
    victim.kill_when(victim.has_receipts)
    assert victim.store.rows.counts()[0] == 0, "the first kill must be before the commit"
    victim.kill_when(victim.has_rows)
    assert victim.store.generations() == [], "the second kill must be before the publication"
    assert victim.finish() == SHARDS * ROWS_PER_SHARD
    expected = stored_rows(on_disk)
    (generation,) = victim.store.generations()
    assert stored_rows(config, generation.factors_version) == expected and same_scores(config, on_disk)

    # an unfinished upload, as a worker leaves it when it is killed during the write of a large fragment
    key = "killed/factors.lance/data/begun.lance"
    upload_id = swift.client().create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    swift.client().upload_part(Bucket=BUCKET, Key=key, UploadId=upload_id, PartNumber=1, Body=bytes(5 * 2**20))
    monkeypatch.setattr(garbage_module, "_UPLOAD_AGE", timedelta(days=-1))
    with hold_lease(config.index, storage, "gc"):
        garbage = find_garbage(victim.store, keep=1, lease_held=True)
        assert [upload.key for upload in garbage.uploads] == [key]
        remove_garbage(victim.store, garbage)
    rest = find_garbage(victim.store, keep=1)
    assert not (rest.files or rest.receipts or rest.curvatures or rest.uploads or rest.generations)
    assert "Uploads" not in swift.client().list_multipart_uploads(Bucket=BUCKET, Prefix="killed/")
    assert stored_rows(config, generation.factors_version) == expected and same_scores(config, on_disk)
