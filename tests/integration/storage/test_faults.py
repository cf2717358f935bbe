"""Invariant: requests that fail occasionally do not change the result; a store that fails permanently stops the
build with one sentence in a bounded time, and the current generation still answers.
"""

import json
import time
from pathlib import Path

import pytest
import yaml

import lorif_core as lc
from flows.build import build
from lorif_core.config import StorageConfig
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.lorif import run
from tests.integration.rows import stored_rows
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config
from tests.patience import patience
from tests.servers.proxy import Fault, FaultProxy, Kind
from tests.unit.tables.small_store import SPEC, finished

SHARDS = 12
CORPUS = f"corpus-{SHARDS}"
STATED_SECONDS = 180  # README: a build stops at most three minutes after the store failed


@pytest.fixture(scope="module")
def undisturbed(s3_server: MotoServer, prefect_server: None, ray_session: None) -> dict[str, bytes]:
    """Rows of a build without faults."""
    config = s3_config(s3_server.url, "undisturbed", CORPUS)
    build(config)
    return stored_rows(config)


FAULTS = {
    "503 SlowDown": Fault("slow_down", 0.05),
    "reset before the request": Fault("reset_before", 0.05),
    "reset after the request": Fault("reset_after", 0.05),
    "pause and reset": Fault("stall", 0.05, seconds=2),
    "truncated body": Fault("truncate", 0.05),
    "latency": Fault("latency", 0.5, seconds=0.1),
}


SLOW = ("reset before the request", "latency", "pause and reset", "stall")


@pytest.mark.parametrize(
    "kind",
    [
        *(kind for kind in FAULTS if kind not in SLOW),
        *(pytest.param(kind, marks=pytest.mark.chaos) for kind in SLOW),
    ],
)
def test_a_build_with_faults_has_the_same_rows(
    kind: str, s3_server: MotoServer, undisturbed: dict[str, bytes]
) -> None:
    fault = FAULTS.get(kind, Fault("stall", 0.05, seconds=30))
    with FaultProxy(s3_server.url, seed=7, fault=fault) as proxy:
        config = s3_config(proxy.url, kind.replace(" ", "-"), CORPUS)
        generation = build(config)
        assert proxy.injected > 3, "the proxy must have injected faults"
        proxy.fault = None
        assert stored_rows(config, generation.factors_version) == undisturbed


@pytest.mark.chaos
def test_a_permanently_failing_store_stops_the_build_and_the_old_generation_answers(
    s3_server: MotoServer, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_shards(s3_server, "growing", range(4))
    with FaultProxy(s3_server.url) as proxy:
        config = s3_config(proxy.url, "dies", "growing")
        build(config)
        before = lc.open_index(config.index, config.storage).scores(["the cat sees"])
        put_shards(s3_server, "growing", range(4, SHARDS))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))

        def fail_at_the_second_receipt(request: str) -> None:
            requests.append(request)
            if len([put for put in requests if put.startswith("PUT") and "/receipts/" in put]) == 2:
                proxy.fault = Fault("slow_down")
                failed.append(time.monotonic())

        requests: list[str] = []
        failed: list[float] = []
        proxy.watch = fail_at_the_second_receipt
        code, out, _ = run(capsys, "build", "-c", str(path), "--json")
        stopped = time.monotonic()
        message = json.loads(out.splitlines()[-1])["error"]
        assert code == 1 and "SlowDown" in message and config.index in message and "\n" not in message
        assert failed and stopped - failed[0] < patience(STATED_SECONDS)
        proxy.watch, proxy.fault = lambda request: None, None
        ids, scores = lc.open_index(config.index, config.storage).scores(["the cat sees"])
        assert ids == before[0] and (scores == before[1]).all()
        assert build(config).rows == SHARDS * ROWS_PER_SHARD
        assert stored_rows(config) == undisturbed
        assert len(Store(config.index, config.storage).generations()) == 2


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_commit_that_is_cut_off_is_made_once(kind: Kind, s3_server: MotoServer) -> None:
    """Lance does not retry a commit, because it cannot know whether the store has it."""
    with FaultProxy(s3_server.url) as proxy:
        storage = StorageConfig(endpoint=proxy.url, region="us-east-1", allow_http=True)
        store = Store(f"s3://{BUCKET}/cut-off-{kind}", storage)
        store.create(SPEC)
        receipt, since = finished(store, 0), store.rows.version()
        commits: list[str] = []

        def cut_off_the_first(request: str) -> None:
            if request.startswith("PUT") and "_versions" in request:
                commits.append(request)
                proxy.fault = Fault(kind, match="^PUT.*_versions") if len(commits) == 1 else None

        proxy.watch = cut_off_the_first
        store.rows.commit_wave([receipt], since)
        proxy.watch = lambda request: None
        assert proxy.injected == 1 and store.rows.counts() == (4, 12) and store.rows.version() == since + 1
