"""Invariant: new corpus files in S3 lead to one Prefect event per folder, and nothing else leads to an event."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.settings import PREFECT_API_URL

from infra.bridge import handler as bridge
from lorif_core.corpus.records import ENDINGS
from tests.patience import patience

SECRET = "pnu_planted-key"


def notification(*keys: str, event: str = "ObjectCreated:Put") -> dict[str, Any]:
    """A notification that S3 sends to Lambda, with URL-encoded keys."""
    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": "eu-central-1",
                "eventTime": "2026-11-25T01:02:03.000Z",
                "eventName": event,
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "bucket": {"name": "acme", "arn": "arn:aws:s3:::acme"},
                    "object": {"key": key, "size": 7, "eTag": "0123", "sequencer": f"00{number}"},
                },
            }
            for number, key in enumerate(keys)
        ]
    }


def eventbridge(key: str, detail_type: str = "Object Created") -> dict[str, Any]:
    """A notification that EventBridge sends, with the plain key."""
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": detail_type,
        "source": "aws.s3",
        "time": "2026-11-25T01:02:03Z",
        "region": "eu-central-1",
        "detail": {
            "version": "0",
            "bucket": {"name": "acme"},
            "object": {"key": key, "size": 7, "etag": "0123", "sequencer": "0001"},
            "reason": "PutObject",
        },
    }


def events_of(event: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(event, resource, prefix) of the Prefect events of a notification."""
    created = (arrival for arrival in bridge.arrivals(event) if arrival.is_corpus)
    return [
        (event["event"], event["resource"]["prefect.resource.id"], event["payload"]["prefix"])
        for event in bridge.prefect_events(created)
    ]


def arrived(prefix: str) -> tuple[str, str, str]:
    return ("corpus.shard.arrived", f"lorif.corpus.acme/{prefix}", f"s3://acme/{prefix}/")


def test_both_kinds_of_notification_give_the_same_events() -> None:
    assert events_of(notification("corpus/2026/a+b%C3%A4/part-1.parquet")) == [arrived("corpus/2026/a bä")]
    assert events_of(eventbridge("corpus/2026/a bä/part-1.parquet")) == [arrived("corpus/2026/a bä")]
    assert events_of(eventbridge("corpus/2026/a+b%20/part-1.parquet")) == [arrived("corpus/2026/a+b%20")]
    assert events_of(eventbridge("part-1.jsonl")) == [("corpus.shard.arrived", "lorif.corpus.acme/", "s3://acme/")]


def test_a_folder_gets_one_event() -> None:
    events = events_of(notification("c/x/1.jsonl", "c/x/2.jsonl.zst", "c/y/3.arrow"))
    assert events == [arrived("c/x"), arrived("c/y")]


@pytest.mark.parametrize(
    "event",
    [
        notification("c/1.jsonl", event="ObjectRemoved:Delete"),
        eventbridge("c/1.jsonl", "Object Deleted"),
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "acme"},
        notification("c/", "c/readme.txt", "c/_SUCCESS", "c/.part.jsonl"),
        notification("i/factors.lance/data/1.lance", "i/_lorif/receipts/1.json", "i/_versions/9.parquet"),
        {"Records": []},
    ],
)
def test_other_notifications_make_no_event(event: dict[str, Any]) -> None:
    assert bridge.handler(event, None) == {"events": 0}


def test_the_bridge_knows_the_file_formats_of_a_corpus() -> None:
    assert bridge.ENDINGS == ENDINGS


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        {},
        {"Records": None},
        {"Records": [{"eventName": "ObjectCreated:Put", "eventTime": "now", "s3": {"bucket": {}}}]},
        {"Records": [{"eventSource": "aws:sqs", "body": "{}"}]},
        {"detail-type": "Object Created", "time": "now", "detail": {"object": {"key": "c/1.jsonl"}}},
        {"detail-type": "Object Created", "time": "now", "detail": None},
    ],
)
def test_a_malformed_event_raises_an_error_of_one_sentence(event: Any) -> None:
    with pytest.raises(bridge.MalformedEventError) as caught:
        bridge.handler(event, None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 30


def test_a_prefect_server_stores_a_repeated_event_once(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notification is delivered twice; the events are read back from the server's events API."""
    url = PREFECT_API_URL.value()
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/")
    event = notification("corpus/a+b/part-1.parquet", "corpus/c/part-2.jsonl")
    assert bridge.handler(event, None) == bridge.handler(event, None) == {"events": 2}
    event_filter = {"event": {"name": ["corpus.shard.arrived"]}}
    deadline = time.monotonic() + patience(30)
    stored: list[dict[str, Any]] = []
    while len(stored) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
        query = urllib.request.Request(
            f"{url}/events/filter",
            json.dumps({"filter": event_filter, "limit": 50}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(query, timeout=patience(10)) as answer:
            stored = json.load(answer)["events"]
    events = sorted((each["event"], each["resource"]["prefect.resource.id"], each["payload"]) for each in stored)
    assert events == [
        ("corpus.shard.arrived", "lorif.corpus.acme/corpus/a b", {"prefix": "s3://acme/corpus/a b/"}),
        ("corpus.shard.arrived", "lorif.corpus.acme/corpus/c", {"prefix": "s3://acme/corpus/c/"}),
    ]
    assert {each["occurred"] for each in stored} == {"2026-11-25T01:02:03Z"}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[int], list[str | None]]]:
    """A server with prepared responses: (status codes to send, Authorization headers that arrived)."""
    statuses: list[int] = []
    headers: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            headers.append(self.headers.get("Authorization"))
            self.send_response(statuses.pop(0))
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
    monkeypatch.setattr(bridge, "_DELAYS", (0.01, 0.01, 0.01))
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.delenv("PREFECT_API_KEY", raising=False)
    yield statuses, headers
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("responses", "tries", "accepted"),
    [
        ([204], 1, True),
        ([503, 429, 500, 204], 4, True),
        ([503, 503, 503, 503], 4, False),
        ([401], 1, False),
        ([422], 1, False),
        ([307], 1, False),
    ],
)
def test_only_transient_errors_are_tried_again(
    answers: tuple[list[int], list[str | None]], responses: list[int], tries: int, accepted: bool
) -> None:
    statuses, headers = answers
    statuses += responses
    if accepted:
        assert bridge.handler(eventbridge("c/1.jsonl"), None) == {"events": 1}
    else:
        with pytest.raises(bridge.BridgeError, match=f"answers {responses[-1]}.*1 events were not accepted"):
            bridge.handler(eventbridge("c/1.jsonl"), None)
    assert len(headers) == tries


@pytest.mark.parametrize(
    ("variable", "argument", "value"),
    [("PREFECT_API_KEY", "api_key", SECRET), ("PREFECT_API_AUTH_STRING", "auth_string", f"lorif:{SECRET}")],
)
def test_credentials_are_sent_in_prefects_format_and_never_shown(
    answers: tuple[list[int], list[str | None]],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    argument: str,
    value: str,
) -> None:
    statuses, headers = answers
    statuses.append(403)
    monkeypatch.setenv(variable, value)
    with pytest.raises(bridge.BridgeError) as caught:
        bridge.handler(eventbridge("c/1.jsonl"), None)
    client = PrefectClient("http://127.0.0.1:1/api", **{argument: value})
    assert headers == [client._client.headers["Authorization"]]
    assert SECRET not in str(caught.value)


def test_a_missing_api_url_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(bridge.BridgeError, match="PREFECT_API_URL must be set"):
        bridge.handler(eventbridge("c/1.jsonl"), None)
