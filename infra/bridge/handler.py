"""AWS Lambda handler: turns new corpus objects in S3 into Prefect events `corpus.shard.arrived`.

It is deployed as this single file and uses only the standard library. It accepts S3's own notifications and
EventBridge's `Object Created`, and posts one event for each folder that has new files:

    event: corpus.shard.arrived
    resource: {"prefect.resource.id": "lorif.corpus.<bucket>/<prefix>"}
    payload: {"prefix": "s3://<bucket>/<prefix>/"}

A notification that is delivered twice makes events with the same ids, which Prefect stores once. Files that a
corpus ignores (other formats, names that begin with `.` or `_`) make no event, and neither does an index.

Environment:
    PREFECT_API_URL: URL of the API, such as https://prefect.example.com/api.
    PREFECT_API_KEY: key for Prefect Cloud.
    PREFECT_API_AUTH_STRING: `user:password` for your own Prefect server; it takes precedence over the key.
"""

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

EVENT = "corpus.shard.arrived"
ENDINGS = (  # as in lorif_core.corpus.records
    ".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".arrow", ".json", ".json.gz", ".json.zst",
    ".bin", ".idx", ".npy", ".mds", ".mds.zstd",
)  # fmt: skip

_DELAYS = (1.0, 2.0, 4.0)  # seconds between attempts to post
_TIMEOUT = 10.0  # seconds
_NAMESPACE = uuid.UUID("6f5a0f0e-4f5e-5a57-9d0b-6c6f72696600")


class MalformedEventError(ValueError):
    """The input is not an S3 notification; the message names the missing part."""


class BridgeError(RuntimeError):
    """Prefect did not accept the events; the notification must be delivered again."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A new object; `time` is in RFC 3339, and `version` differs between writes of the same key."""

    bucket: str
    key: str
    time: str
    version: str

    @property
    def prefix(self) -> str:
        """The folder, without a trailing slash."""
        return self.key.rpartition("/")[0]

    @property
    def is_corpus(self) -> bool:
        """Whether a corpus in this folder may read the object; what ends in .json may be JSON lines."""
        hidden = any(part.startswith((".", "_")) for part in self.key.split("/"))
        return self.key.lower().endswith(ENDINGS) and not hidden


def handler(event: Any, context: object) -> dict[str, int]:
    """Entry point of the Lambda function; returns the number of posted events.

    Raises:
        MalformedEventError: the event is not an S3 notification.
        BridgeError: Prefect cannot be reached, or refuses the events.
    """
    events = prefect_events(arrival for arrival in arrivals(event) if arrival.is_corpus)
    if events:
        post(events)
    return {"events": len(events)}


def arrivals(event: Any) -> Iterator[Arrival]:
    """The created objects of a notification; empty for removals and for S3's test message.

    Raises:
        MalformedEventError: the event is neither an S3 nor an EventBridge notification.
    """
    if not isinstance(event, dict):
        raise MalformedEventError(f"an event must be a JSON object, not {type(event).__name__}")
    if event.get("Event") == "s3:TestEvent":
        return
    try:
        if "Records" in event:
            yield from _of_notification(event["Records"])
        elif "detail-type" in event:
            yield from _of_eventbridge(event)
        else:
            raise MalformedEventError(
                "the event has neither Records (S3 notification) nor detail-type (EventBridge notification)"
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedEventError(
            f"the event is not a notification of S3: {type(error).__name__} {error} while reading bucket, key and "
            f"time from Records[].s3 or detail"
        ) from None


def _of_notification(records: list[dict[str, Any]]) -> Iterator[Arrival]:
    for record in records:
        name = record["eventName"].removeprefix("s3:")  # some S3 servers add this prefix
        if name.startswith("ObjectCreated:"):
            entity = record["s3"]["object"]
            version = str(entity.get("sequencer") or entity.get("eTag", ""))
            yield Arrival(
                record["s3"]["bucket"]["name"], unquote_plus(entity["key"]), record["eventTime"], version
            )


def _of_eventbridge(event: dict[str, Any]) -> Iterator[Arrival]:
    if event["detail-type"] == "Object Created":
        entity = event["detail"]["object"]
        version = str(entity.get("sequencer") or entity.get("etag", ""))
        yield Arrival(event["detail"]["bucket"]["name"], entity["key"], event["time"], version)


def prefect_events(created: Iterator[Arrival]) -> list[dict[str, Any]]:
    """One event for each folder; its id is a hash of the objects that arrived in the folder."""
    folders: dict[tuple[str, str], list[Arrival]] = {}
    for arrival in created:
        folders.setdefault((arrival.bucket, arrival.prefix), []).append(arrival)
    events = []
    for (bucket, prefix), group in folders.items():
        identity = json.dumps([bucket, sorted([arrival.key, arrival.version] for arrival in group)])
        events.append(
            {
                "id": str(uuid.uuid5(_NAMESPACE, identity)),
                "occurred": max(arrival.time for arrival in group),
                "event": EVENT,
                "resource": {"prefect.resource.id": f"lorif.corpus.{bucket}/{prefix}"},
                "payload": {"prefix": f"s3://{bucket}/{prefix}/" if prefix else f"s3://{bucket}/"},
            }
        )
    return events


def post(events: list[dict[str, Any]]) -> None:
    """Send events to PREFECT_API_URL, and try again after transient errors.

    Raises:
        BridgeError: PREFECT_API_URL is not set; or Prefect cannot be reached, keeps failing, or refuses.
    """
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise BridgeError("PREFECT_API_URL must be set to the URL of the Prefect API, such as https://host/api")
    request = urllib.request.Request(f"{url}/events", json.dumps(events).encode(), _headers(), method="POST")
    for delay in (*_DELAYS, None):
        problem, transient = _try_to_send(request)
        if problem is None:
            return
        if delay is None or not transient:
            raise BridgeError(f"{url}/events {problem}; {len(events)} events were not accepted")
        time.sleep(delay)


def _try_to_send(request: urllib.request.Request) -> tuple[str | None, bool]:
    """Send a request once; returns (the problem, or None; whether the problem is transient)."""
    try:
        with _OPENER.open(request, timeout=_TIMEOUT):
            return None, False
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(300).decode(errors="replace")
        return f"answers {error.code}: {' '.join(body.split())}", error.code == 429 or error.code >= 500
    except (OSError, http.client.HTTPException) as error:
        return f"cannot be reached ({error})", True


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if user := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return headers


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the credentials to another host and turn the POST into a GET."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
