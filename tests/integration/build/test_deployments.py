"""Invariant: what prefect.yaml deploys runs by the clock, at events and by hand, and commits one at a time."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.build import build
from infra.bridge import handler as bridge
from lorif_core.config import Config
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.infra.files import INFRA
from tests.integration.growing import codes_of
from tests.integration.s3 import BUCKET, put_shards, s3_config
from tests.servers.prefect_place import PrefectPlace

POOL, UPDATE, REBUILD = "lorif", "update/update-nightly", "build/rebuild-weekly"
CORPUS = "deployed"
SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Night:
    """What has happened: runs by what started them, the index, what was told of it, processes that are left."""

    config: Config
    runs: dict[str, FlowRun]
    artifacts: dict[str, dict[str, Any]]
    alerts: list[dict[str, Any]]
    left: list[int]

    @property
    def generations(self) -> list[Generation]:
        return Store(self.config.index, self.config.storage).generations()

    def receipt(self, run: str) -> dict[str, Any]:
        found = Objects(self.config.index, self.config.storage).get(f"runs/{self.runs[run].id}.json")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def night(
    s3_place: MotoServer, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Night:
    """One run by an event, one by the clock, one by hand at the same time, and an event without a prefix."""
    home, file = tmp_path_factory.mktemp("prefect"), tmp_path_factory.mktemp("config") / "config.yaml"
    config = s3_config(
        s3_place.url, "indexes/deployed", CORPUS, curvature={"kind": "none"},
        compute={"ray": ray.get_runtime_context().gcs_address, "workers": 1},
    )  # fmt: skip
    file.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    with receiver() as (address, alerts):
        with PrefectPlace(home, {"LORIF_HOME": str(INFRA.parent), "LORIF_CONFIG": str(file)}) as place:
            put_shards(s3_place, CORPUS, range(4))
            build(config)
            place.await_server()
            place.start_worker(POOL)
            with SyncPrefectClient(place.api) as client, temporary_settings({PREFECT_API_URL: place.api}):
                runs = run_all(place, client, s3_place, file.parent, address)
                until(lambda: alerts, place, "an alert")
                artifacts = {
                    found.key: json.loads(found.data) if found.type == "table" else found.data
                    for found in client.read_artifacts(
                        artifact_filter=ArtifactFilter(flow_run_id={"any_": [runs["event"].id]})
                    )
                }
            processes = place.running()
        left = [number for number in processes if psutil.pid_exists(number)]
    return Night(config, runs, artifacts, alerts, left)


def run_all(
    place: PrefectPlace, client: SyncPrefectClient, store: MotoServer, folder: Path, address: str
) -> dict[str, FlowRun]:
    """All runs, which have ended, by what started them."""
    until(lambda: [pool for pool in client.read_work_pools() if pool.name == POOL], place, "the pool")
    place.command("deploy", "--all")
    watch(place, folder, address)
    of = {name: client.read_deployment_by_name(name).id for name in (UPDATE, REBUILD)}
    sweep = (datetime.now(UTC) + timedelta(seconds=75)).replace(second=0, microsecond=0)
    client.create_deployment_schedules(of[UPDATE], [(CronSchedule(cron=f"{sweep:%M %H} * * *"), True)])

    def runs(flow: str, ready: Callable[[FlowRun], bool]) -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id == of[flow] and ready(run)]

    store.client().delete_object(Bucket=BUCKET, Key=f"{CORPUS}/000.jsonl")
    put_shards(store, f"{CORPUS}/outside", range(4, 6))
    put_shards(store, f"{CORPUS}/arrived", range(6, 7))
    arrive(place, f"{CORPUS}/arrived/006.jsonl")
    by_event = until(lambda: runs(UPDATE, lambda run: "prefix" in run.parameters), place, "the event's run")
    by_clock = until(lambda: runs(UPDATE, lambda run: is_sweep(run, sweep) and is_begun(run)), place, "the sweep")
    place.command("deployment", "run", REBUILD)
    by_hand = until(lambda: runs(REBUILD, lambda run: not run.auto_scheduled), place, "the run by hand")
    bridge_post(place, "lorif.corpus.acme/nowhere", {})
    without = until(lambda: runs(UPDATE, lambda run: run.parameters.get("prefix") == ""), place, "the last run")
    started = {"event": by_event, "clock": by_clock, "hand": by_hand, "no prefix": without}
    return {
        name: until(lambda run=run: ended(client, run), place, f"the end of {name}")[0]
        for name, (run, *_) in started.items()
    }


def is_sweep(run: FlowRun, at: datetime) -> bool:
    return run.auto_scheduled and run.expected_start_time == at


def is_begun(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_scheduled()


def ended(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    found = client.read_flow_run(run.id)
    return [found] if found.state is not None and found.state.is_final() else []


def until(look: Callable[[], list[Any]], place: PrefectPlace, what: str) -> list[Any]:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come\n{place.log('server')}\n{place.log('worker')}")


def arrive(place: PrefectPlace, key: str) -> None:
    """An object's notification, as the Lambda function gets it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_URL", place.api)
        entity = {"key": key, "size": 7, "eTag": "0123", "sequencer": "0001"}
        record = {
            "eventName": "ObjectCreated:Put",
            "eventTime": datetime.now(UTC).isoformat(),
            "s3": {"bucket": {"name": BUCKET}, "object": entity},
        }
        assert bridge.handler({"Records": [record]}, None) == {"events": 1}


def bridge_post(place: PrefectPlace, resource: str, payload: dict[str, Any]) -> None:
    """An event that is not as the bridge makes them."""
    event = {
        "id": "00000000-0000-4000-8000-000000000001", "occurred": datetime.now(UTC).isoformat(),
        "event": bridge.EVENT, "resource": {"prefect.resource.id": resource}, "payload": payload,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_URL", place.api)
        bridge.post([event])


def watch(place: PrefectPlace, folder: Path, address: str) -> None:
    """The automations of `infra/`, told through a webhook."""
    block = CustomWebhookNotificationBlock(
        name="alerts", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    made = str(block.save("lorif-alerts"))
    automations = folder / "automations.yaml"
    automations.write_text((INFRA / "automations.yaml").read_text().replace("${ALERTS}", made))
    place.command("automation", "create", "--from-file", str(automations))


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what is posted to it: (its address, what came)."""
    came: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", came
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_event_the_clock_and_a_hand_each_make_a_generation(night: Night) -> None:
    """Out of the corpus as it was: the event's prefix alone, all that is new, all but what has left it."""
    states = {name: run.state.name for name, run in night.runs.items() if run.state is not None}
    assert states == {"event": "Completed", "clock": "Completed", "hand": "Completed", "no prefix": "Failed"}
    assert night.runs["event"].parameters["prefix"] == f"s3://{BUCKET}/{CORPUS}/arrived/"
    assert [generation.rows for generation in night.generations] == [32, 40, 56, 48]
    told = [night.receipt(name) for name in ("event", "clock", "hand")]
    assert [(receipt["published"], receipt["generation"]) for receipt in told] == [(True, 2), (True, 3), (True, 4)]
    assert [receipt["changes"]["command"] for receipt in told] == ["update", "update", "build"]
    assert [receipt["changes"].get("files", {}).get("vanished") for receipt in told] == [0, 1, None]
    ids = {f"{number}-{row}" for number in range(1, 7) for row in range(8)}
    assert codes_of(night.config).keys() == ids, "none is missing, and none is there twice"


def test_runs_that_commit_wait_for_each_other(night: Night) -> None:
    """The rebuild, another deployment, was started while the sweep was under way."""
    clock, hand = night.runs["clock"], night.runs["hand"]
    assert hand.expected_start_time < clock.end_time <= hand.start_time
    spans = sorted((run.start_time, run.end_time) for run in night.runs.values() if run.start_time is not None)
    assert len(spans) >= 3 and all(first[1] <= second[0] for first, second in pairwise(spans))


def test_an_event_without_a_prefix_gets_one_sentence_and_an_alert(night: Night) -> None:
    state = night.runs["no prefix"].state
    assert state is not None and state.message is not None
    assert "the prefix is empty: the payload of an event corpus.shard.arrived must have one" in state.message
    assert {alert["subject"] for alert in night.alerts} == {f"{night.runs['no prefix'].name}: Failed"}
    assert all("the prefix is empty" in alert["body"] for alert in night.alerts)


def test_a_run_shows_shards_drift_and_bytes(night: Night) -> None:
    assert night.artifacts.keys() >= {"generation", "shards", "summary"}
    (figures,) = night.artifacts["generation"]
    (shard,) = night.artifacts["shards"]
    assert (shard["file"], shard["records"], shard["rows"]) == ("arrived/006.jsonl", "0 to 7", 8)
    assert figures["bytes"] == 40 * shard["bytes"] / 8 == night.receipt("event")["bytes"] > 0
    assert f"]({night.config.index})" in str(night.artifacts["summary"])


def test_everything_is_stopped(night: Night) -> None:
    assert night.left == []
