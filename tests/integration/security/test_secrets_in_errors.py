"""Invariant: no exception shows a credential, even if a store quotes it; the search finds every encoding."""

import base64
import json
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from urllib.parse import quote

import lance
import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayTaskError

from flows.commands import maintenance
from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.storage.connection import lance_options
from lorif_core.storage.faults import without_secrets
from lorif_core.storage.objects import Objects
from lorif_core.tables.datasets import Tables
from tasks.demo.object_store import MotoServer
from tasks.environment import environment
from tests.integration.lorif import run
from tests.integration.planted import (
    ENVIRONMENT_CREDENTIALS,
    MARK,
    PROFILE,
    PROFILE_CREDENTIALS,
    SECRETS,
    KeyRecordingProxy,
    active_fault,
    error_page,
    quoting_fault,
    secrets_in,
)
from tests.integration.s3 import BUCKET


@pytest.fixture(scope="module")
def proxy(s3_server: MotoServer) -> Iterator[KeyRecordingProxy]:
    with KeyRecordingProxy(s3_server.url) as listening:
        yield listening


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_every_encoding(secret: str) -> None:
    around = f"user:{secret}@host"
    for content in (around, quote(around), repr(around.encode()), json.dumps([around])):
        assert secrets_in(content) == [secret]
    for shift in range(3):
        assert secrets_in(base64.b64encode(f"{'-' * shift}{around}".encode())) == [secret]
    assert secrets_in(pickle.dumps(LorifError(around))) == [secret]
    assert secrets_in(secret[:-5]) == []


ROWS = pa.table({"text": ["the cat"]})
OPERATIONS: dict[str, Callable[[str, StorageConfig], object]] = {
    "s3fs reads": lambda uri, storage: Objects(uri, storage).get("x.json"),
    "s3fs lists": lambda uri, storage: Objects(uri, storage).names("receipts"),
    "s3fs writes": lambda uri, storage: Objects(uri, storage).put("x.json", {}),
    "Lance reads": lambda uri, storage: Tables(uri, storage).open("factors"),
    "Lance writes": lambda uri, storage: Tables(uri, storage).write(
        "factors", iter(ROWS.to_batches()), ROWS.schema
    ),
    "first contact": lambda uri, storage: Objects(uri.replace(BUCKET, "another"), storage).get("x.json"),
}
URI = f"s3://{BUCKET}/never-written"


def storage_behind(proxy: KeyRecordingProxy, profile: str | None) -> StorageConfig:
    return StorageConfig(endpoint=proxy.url, region="us-east-1", allow_http=True, profile=profile)


UNKNOWN_CODES = list(product(OPERATIONS, ["OddRefusal"], [None, PROFILE]))  # so `faults` shows the text
KNOWN_CODES = [
    *product(OPERATIONS, ["SignatureDoesNotMatch"], [PROFILE]),
    ("s3fs lists", "InvalidAccessKeyId", None),
    ("s3fs writes", "InvalidAccessKeyId", PROFILE),
    ("s3fs reads", "SlowDown", None),
]


@pytest.mark.parametrize(("operation", "code", "profile"), [*UNKNOWN_CODES, *KNOWN_CODES])
def test_no_exception_contains_quoted_credentials(
    operation: str, code: str, profile: str | None, proxy: KeyRecordingProxy, credentials: dict[str, str]
) -> None:
    fault = quoting_fault(code, profile, but_first_contact=operation != "first contact")
    with environment(credentials), active_fault(proxy, fault), pytest.raises(LorifError) as caught:
        OPERATIONS[operation](URI, storage_behind(proxy, profile))
    error = caught.value
    shown = [str(error), repr(error), *traceback.format_exception(error), repr(error.__cause__), repr(vars(error))]
    assert proxy.injected > 0 and secrets_in("\n".join(shown)) == secrets_in(pickle.dumps(error)) == []
    assert error.__suppress_context__, "a traceback must not continue with the library's error"
    if code == "OddRefusal" and operation in ("s3fs lists", "s3fs writes", "first contact"):
        assert MARK in str(error), "the text of the store must be shown, or this test shows nothing"


def test_lance_itself_shows_quoted_credentials(proxy: KeyRecordingProxy, credentials: dict[str, str]) -> None:
    """Shows that the test above tests something; we keep only the code and the message of the store."""
    options = lance_options(storage_behind(proxy, None))
    with environment(credentials), active_fault(proxy, quoting_fault("OddRefusal", None)):
        with pytest.raises((ValueError, OSError)) as caught:
            lance.dataset(f"{URI}/factors.lance", storage_options=options)
        assert secrets_in(str(caught.value)) == list(ENVIRONMENT_CREDENTIALS.values())
        text = without_secrets(str(caught.value))
    assert secrets_in(text) == [] and MARK in text and "StringToSign" not in text


@ray.remote(max_calls=1, num_cpus=0)
def run_in_worker(operation: str, storage: StorageConfig, credentials_file: str) -> None:
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = credentials_file
    OPERATIONS[operation](URI, storage)


@pytest.mark.parametrize("operation", ["s3fs writes", "Lance writes"])
def test_no_exception_from_a_ray_worker_contains_a_secret(
    operation: str, ray_session: None, proxy: KeyRecordingProxy, credentials: dict[str, str]
) -> None:
    path = credentials["AWS_SHARED_CREDENTIALS_FILE"]
    with active_fault(proxy, quoting_fault("OddRefusal", PROFILE, but_first_contact=True)):
        with pytest.raises(RayTaskError) as caught:
            ray.get(run_in_worker.remote(operation, storage_behind(proxy, PROFILE), path))
        assert PROFILE_CREDENTIALS["aws_access_key_id"] in proxy.keys
    error = caught.value
    assert isinstance(error.cause, LorifError) and "cannot be written" in str(error)
    shown = [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    for content in ("\n".join(shown), pickle.dumps(vars(error)), pickle.dumps(error.cause)):
        assert secrets_in(content) == []


def test_a_debug_traceback_shows_no_secret(
    credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is unexpected, so its text is that of a library."""

    def fail(index: str, overrides: list[str]) -> None:
        raise RuntimeError(error_page("OddRefusal", ENVIRONMENT_CREDENTIALS.values()))

    monkeypatch.setattr(maintenance, "run_status", fail)
    with environment(credentials):
        code, out, err = run(capsys, "status", URI, "--json")
    assert code == 1 and "Traceback" in err and "in fail" in err and MARK in err and MARK in out
    assert secrets_in(out + err) == []
