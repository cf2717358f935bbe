"""New corpus objects in S3 -> Prefect events `corpus.shard.arrived`: an AWS Lambda handler, standard library only.

It is deployed as this one file. It takes S3's own notifications and EventBridge's `Object Created`, and posts one
event for each folder that got new files:

    event: corpus.shard.arrived
    resource: {"prefect.resource.id": "lorif.corpus.<bucket>/<prefix>"}
    payload: {"prefix": "s3://<bucket>/<prefix>/"}

A notification that is delivered twice makes events of the same ids, which Prefect takes once. What a corpus would
not read (other formats, names that begin with `.` or `_`) makes none, so neither does an index in the same bucket.

Environment:
    PREFECT_API_URL: such as https://prefect.example.com/api.
    PREFECT_API_KEY: for Prefect Cloud.
    PREFECT_API_AUTH_STRING: `user:password` of a Prefect server of one's own; it comes before the key.
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
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".arrow")  # those of lorif_core.corpus.records

_DELAYS = (1.0, 2.0, 4.0)  # seconds between the tries of a post
_TIMEOUT = 10.0  # seconds
_NAMESPACE = uuid.UUID("6f5a0f0e-4f5e-5a57-9d0b-6c6f72696600")


class MalformedEventError(ValueError):
    """What came in is no notification of S3; the message says what is missing."""


class BridgeError(RuntimeError):
    """Prefect did not take the events; the notification is to be delivered again."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An object that was created: where, when (RFC 3339), and what tells this write from others of its key."""

    bucket: str
    key: str
    time: str
    version: str

    @property
    def prefix(self) -> str:
        """The folder, without a slash at its end."""
        return self.key.rpartition("/")[0]

    @property
    def is_corpus(self) -> bool:
        """Whether a corpus in this folder would read it."""
        hidden = any(part.startswith((".", "_")) for part in self.key.split("/"))
        return self.key.lower().endswith(ENDINGS) and not hidden


def handler(event: Any, context: object) -> dict[str, int]:
    """Entry point of the Lambda function; how many events were posted.

    Raises:
        MalformedEventError: the event is not one of S3's.
        BridgeError: Prefect cannot be reached, or refuses the events.
    """
    events = prefect_events(arrival for arrival in arrivals(event) if arrival.is_corpus)
    if events:
        post(events)
    return {"events": len(events)}


def arrivals(event: Any) -> Iterator[Arrival]:
    """The created objects that a notification tells of; none for removals and for S3's test message.

    Raises:
        MalformedEventError: it is neither an S3 notification nor EventBridge's.
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
            raise MalformedEventError("it has neither Records, as S3's own, nor detail-type, as EventBridge's")
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedEventError(
            f"this is no notification of S3: {type(error).__name__} {error} where Records[].s3 or detail names "
            f"the bucket, the key and the time"
        ) from None


def _of_notification(records: list[dict[str, Any]]) -> Iterator[Arrival]:
    for record in records:
        name = record["eventName"].removeprefix("s3:")  # some S3 servers write it with the prefix
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
    """One event for each folder, whose id follows from what arrived there."""
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
    """Send events to PREFECT_API_URL, again where trying again can help.

    Raises:
        BridgeError: it is not set, cannot be reached, keeps failing, or refuses.
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
            raise BridgeError(f"{url}/events {problem}; {len(events)} events were not taken")
        time.sleep(delay)


def _try_to_send(request: urllib.request.Request) -> tuple[str | None, bool]:
    """(what went wrong, or None; whether it may go better the next time)."""
    try:
        with _OPENER.open(request, timeout=_TIMEOUT):
            return None, False
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(300).decode(errors="replace")
        return f"answers {error.code}: {' '.join(told.split())}", error.code == 429 or error.code >= 500
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
    """A redirect would carry the credentials to another place, and turn the post into a get."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
