"""Invariant: the deployments of prefect.yaml run on schedules, on events and by hand, and commit one at a time."""

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
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.build import build
from infra.bridge import handler as bridge
from lorif_core.config import Config
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tasks.workers.host import end_idle_hosts
from tests.infra.files import INFRA
from tests.integration.growing import codes_of
from tests.integration.s3 import BUCKET, put_shards, s3_config
from tests.patience import patience
from tests.servers.prefect_server import PrefectServer

POOL, UPDATE, REBUILD = "lorif", "update/update-nightly", "build/rebuild-weekly"
CORPUS = "deployed"
SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class DeploymentRuns:
    """Runs by their cause, the config of their index, artifacts and alerts, and processes that did not end."""

    config: Config
    runs: dict[str, FlowRun]
    artifacts: dict[str, dict[str, Any]]
    alerts: list[dict[str, Any]]
    remaining_processes: list[int]

    @property
    def generations(self) -> list[Generation]:
        return Store(self.config.index, self.config.storage).generations()

    def receipt(self, run: str) -> dict[str, Any]:
        receipt = Objects(self.config.index, self.config.storage).get(f"runs/{self.runs[run].id}.json")
        assert receipt is not None
        return receipt


@pytest.fixture(scope="module")
def deployment_runs(
    s3_server: MotoServer, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> DeploymentRuns:
    """A run on an event, a scheduled one, one by hand at the same time, and one on an event without a prefix."""
    home, file = tmp_path_factory.mktemp("prefect"), tmp_path_factory.mktemp("config") / "config.yaml"
    config = s3_config(
        s3_server.url, "indexes/deployed", CORPUS, curvature={"kind": "none"},
        compute={"ray": ray.get_runtime_context().gcs_address, "workers": 1},
    )  # fmt: skip
    file.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    with receiver() as (address, alerts):
        with PrefectServer(home, {"LORIF_HOME": str(INFRA.parent), "LORIF_CONFIG": str(file)}) as server:
            put_shards(s3_server, CORPUS, range(4))
            build(config)
            end_idle_hosts()  # those of this process would reserve the cores that the runs need
            server.wait_for_server()
            server.start_worker(POOL)
            with SyncPrefectClient(server.api) as client, temporary_settings({PREFECT_API_URL: server.api}):
                runs = run_all(server, client, s3_server, file.parent, address)
                until(lambda: alerts, server, "an alert")
                artifacts = {
                    artifact.key: json.loads(artifact.data) if artifact.type == "table" else artifact.data
                    for artifact in client.read_artifacts(
                        artifact_filter=ArtifactFilter(flow_run_id={"any_": [runs["event"].id]})
                    )
                }
            processes = server.running()
        remaining = [number for number in processes if psutil.pid_exists(number)]
    return DeploymentRuns(config, runs, artifacts, alerts, remaining)


def run_all(
    server: PrefectServer, client: SyncPrefectClient, store: MotoServer, folder: Path, address: str
) -> dict[str, FlowRun]:
    """Start all runs and wait for their ends; returns them by their cause."""
    until(lambda: [pool for pool in client.read_work_pools() if pool.name == POOL], server, "the pool")
    server.command("deploy", "--all")
    create_automations(server, folder, address)
    deployments = {name: client.read_deployment_by_name(name).id for name in (UPDATE, REBUILD)}
    sweep = (datetime.now(UTC) + timedelta(seconds=25)).replace(microsecond=0)
    daily = IntervalSchedule(interval=timedelta(days=1), anchor_date=sweep)  # cron would wait for a full minute
    client.create_deployment_schedules(deployments[UPDATE], [(daily, True)])

    def runs(name: str, ready: Callable[[FlowRun], bool]) -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id == deployments[name] and ready(run)]

    store.client().delete_object(Bucket=BUCKET, Key=f"{CORPUS}/000.jsonl")
    put_shards(store, f"{CORPUS}/outside", range(4, 6))
    put_shards(store, f"{CORPUS}/arrived", range(6, 7))
    notify(server, f"{CORPUS}/arrived/006.jsonl")
    by_event = until(lambda: runs(UPDATE, lambda run: "prefix" in run.parameters), server, "the event's run")
    by_clock = until(lambda: runs(UPDATE, lambda run: is_sweep(run, sweep) and is_begun(run)), server, "the sweep")
    server.command("deployment", "run", REBUILD)
    by_hand = until(lambda: runs(REBUILD, lambda run: not run.auto_scheduled), server, "the run by hand")
    post_event(server, "lorif.corpus.acme/nowhere", {})
    no_prefix = until(lambda: runs(UPDATE, lambda run: run.parameters.get("prefix") == ""), server, "the last run")
    started = {"event": by_event, "clock": by_clock, "hand": by_hand, "no prefix": no_prefix}
    return {
        name: until(lambda run=run: ended(client, run), server, f"the end of {name}")[0]
        for name, (run, *_) in started.items()
    }


def is_sweep(run: FlowRun, at: datetime) -> bool:
    return run.auto_scheduled and run.expected_start_time == at


def is_begun(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_scheduled()


def ended(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    current = client.read_flow_run(run.id)
    return [current] if current.state is not None and current.state.is_final() else []


def until(look: Callable[[], list[Any]], server: PrefectServer, what: str) -> list[Any]:
    """Call `look` until it returns something; returns that."""
    deadline = time.monotonic() + patience(SECONDS)
    while time.monotonic() < deadline:
        if result := look():
            return result
        time.sleep(0.3)
    raise AssertionError(f"{what} did not appear\n{server.log('server')}\n{server.log('worker')}")


def notify(server: PrefectServer, key: str) -> None:
    """Pass the notification of a new object to the bridge, as the Lambda function gets it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_URL", server.api)
        entity = {"key": key, "size": 7, "eTag": "0123", "sequencer": "0001"}
        record = {
            "eventName": "ObjectCreated:Put",
            "eventTime": datetime.now(UTC).isoformat(),
            "s3": {"bucket": {"name": BUCKET}, "object": entity},
        }
        assert bridge.handler({"Records": [record]}, None) == {"events": 1}


def post_event(server: PrefectServer, resource: str, payload: dict[str, Any]) -> None:
    """Post an event that the bridge would not make."""
    event = {
        "id": "00000000-0000-4000-8000-000000000001", "occurred": datetime.now(UTC).isoformat(),
        "event": bridge.EVENT, "resource": {"prefect.resource.id": resource}, "payload": payload,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_URL", server.api)
        bridge.post([event])


def create_automations(server: PrefectServer, folder: Path, address: str) -> None:
    """Create the automations of `infra/`, which send alerts to a webhook."""
    block = CustomWebhookNotificationBlock(
        name="alerts", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block_id = str(block.save("lorif-alerts"))
    automations = folder / "automations.yaml"
    automations.write_text((INFRA / "automations.yaml").read_text().replace("${ALERTS}", block_id))
    server.command("automation", "create", "--from-file", str(automations))


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that records the bodies that are posted to it: (its address, the bodies)."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", bodies
    server.shutdown()
    server.server_close()
    thread.join()


def test_runs_on_events_on_schedules_and_by_hand_publish_generations(deployment_runs: DeploymentRuns) -> None:
    """The first indexes only the prefix of its event, the second all new files, the third drops vanished files."""
    runs = deployment_runs.runs
    states = {name: run.state.name for name, run in runs.items() if run.state is not None}
    assert states == {"event": "Completed", "clock": "Completed", "hand": "Completed", "no prefix": "Failed"}
    assert runs["event"].parameters["prefix"] == f"s3://{BUCKET}/{CORPUS}/arrived/"
    assert [generation.rows for generation in deployment_runs.generations] == [32, 40, 56, 48]
    receipts = [deployment_runs.receipt(name) for name in ("event", "clock", "hand")]
    published = [(receipt["published"], receipt["generation"]) for receipt in receipts]
    assert published == [(True, 2), (True, 3), (True, 4)]
    assert [receipt["changes"]["command"] for receipt in receipts] == ["update", "update", "build"]
    assert [receipt["changes"].get("files", {}).get("vanished") for receipt in receipts] == [0, 1, None]
    ids = {f"{number}-{row}" for number in range(1, 7) for row in range(8)}
    assert codes_of(deployment_runs.config).keys() == ids, "every row must be there exactly once"


def test_runs_that_commit_wait_for_each_other(deployment_runs: DeploymentRuns) -> None:
    """The rebuild, a run of another deployment, was started while the sweep was running."""
    clock, hand = deployment_runs.runs["clock"], deployment_runs.runs["hand"]
    assert hand.expected_start_time < clock.end_time <= hand.start_time
    runs = deployment_runs.runs.values()
    spans = sorted((run.start_time, run.end_time) for run in runs if run.start_time is not None)
    assert len(spans) >= 3 and all(first[1] <= second[0] for first, second in pairwise(spans))


def test_an_event_without_a_prefix_fails_with_one_sentence_and_an_alert(deployment_runs: DeploymentRuns) -> None:
    run, alerts = deployment_runs.runs["no prefix"], deployment_runs.alerts
    state = run.state
    assert state is not None and state.message is not None
    assert "the prefix is empty: the payload of an event corpus.shard.arrived must have one" in state.message
    assert {alert["subject"] for alert in alerts} == {f"{run.name}: Failed"}
    assert all("the prefix is empty" in alert["body"] for alert in alerts)


def test_artifacts_of_a_run_show_shards_drift_and_bytes(deployment_runs: DeploymentRuns) -> None:
    artifacts = deployment_runs.artifacts
    assert artifacts.keys() >= {"generation", "shards", "summary"}
    (figures,) = artifacts["generation"]
    (shard,) = artifacts["shards"]
    assert (shard["file"], shard["records"], shard["rows"]) == ("arrived/006.jsonl", "0 to 7", 8)
    assert figures["bytes"] == 40 * shard["bytes"] / 8 == deployment_runs.receipt("event")["bytes"] > 0
    assert f"]({deployment_runs.config.index})" in str(artifacts["summary"])


def test_all_processes_end(deployment_runs: DeploymentRuns) -> None:
    assert deployment_runs.remaining_processes == []
