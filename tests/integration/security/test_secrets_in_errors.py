"""Invariant: no exception shows a credential, whatever a store quotes; and the search for one finds every form."""

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

from flows import commands
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
    ENVIRONMENT,
    MARK,
    OF_PROFILE,
    PROFILE,
    SECRETS,
    Overhearing,
    hits,
    page,
    refusal,
    served,
)
from tests.integration.s3 import BUCKET


@pytest.fixture(scope="module")
def proxy(s3_place: MotoServer) -> Iterator[Overhearing]:
    with Overhearing(s3_place.url) as listening:
        yield listening


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_every_form(secret: str) -> None:
    around = f"user:{secret}@host"
    for content in (around, quote(around), repr(around.encode()), json.dumps([around])):
        assert hits(content) == [secret]
    for shift in range(3):
        assert hits(base64.b64encode(f"{'-' * shift}{around}".encode())) == [secret]
    assert hits(pickle.dumps(LorifError(around))) == [secret]
    assert hits(secret[:-5]) == []


ROWS = pa.table({"text": ["the cat"]})
CONTACTS: dict[str, Callable[[str, StorageConfig], object]] = {
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


def storage_behind(proxy: Overhearing, profile: str | None) -> StorageConfig:
    return StorageConfig(endpoint=proxy.url, region="us-east-1", allow_http=True, profile=profile)


UNKNOWN = list(product(CONTACTS, ["OddRefusal"], [None, PROFILE]))  # to `faults`, so the text is shown
KNOWN = [
    *product(CONTACTS, ["SignatureDoesNotMatch"], [PROFILE]),
    ("s3fs lists", "InvalidAccessKeyId", None),
    ("s3fs writes", "InvalidAccessKeyId", PROFILE),
    ("s3fs reads", "SlowDown", None),
]


@pytest.mark.parametrize(("contact", "code", "profile"), [*UNKNOWN, *KNOWN])
def test_no_exception_holds_what_a_store_quotes(
    contact: str, code: str, profile: str | None, proxy: Overhearing, credentials: dict[str, str]
) -> None:
    fault = refusal(code, profile, but_first_contact=contact != "first contact")
    with environment(credentials), served(proxy, fault), pytest.raises(LorifError) as caught:
        CONTACTS[contact](URI, storage_behind(proxy, profile))
    error = caught.value
    shown = [str(error), repr(error), *traceback.format_exception(error), repr(error.__cause__), repr(vars(error))]
    assert proxy.hit > 0 and hits("\n".join(shown)) == hits(pickle.dumps(error)) == []
    assert error.__suppress_context__, "a traceback would go on with the library's error"
    if code == "OddRefusal" and contact in ("s3fs lists", "s3fs writes", "first contact"):
        assert MARK in str(error), "the text of the store is not shown, so this is no test"


def test_lance_itself_shows_what_a_store_quotes(proxy: Overhearing, credentials: dict[str, str]) -> None:
    """So the test above is about something; and no more than code and message of it is left."""
    options = lance_options(storage_behind(proxy, None))
    with environment(credentials), served(proxy, refusal("OddRefusal", None)):
        with pytest.raises((ValueError, OSError)) as caught:
            lance.dataset(f"{URI}/factors.lance", storage_options=options)
        assert hits(str(caught.value)) == list(ENVIRONMENT.values())
        text = without_secrets(str(caught.value))
    assert hits(text) == [] and MARK in text and "StringToSign" not in text


@ray.remote(max_calls=1, num_cpus=0)
def reach_from_a_worker(contact: str, storage: StorageConfig, credentials_file: str) -> None:
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = credentials_file
    CONTACTS[contact](URI, storage)


@pytest.mark.parametrize("contact", ["s3fs writes", "Lance writes"])
def test_no_exception_brings_a_secret_through_ray(
    contact: str, ray_session: None, proxy: Overhearing, credentials: dict[str, str]
) -> None:
    path = credentials["AWS_SHARED_CREDENTIALS_FILE"]
    with served(proxy, refusal("OddRefusal", PROFILE, but_first_contact=True)):
        with pytest.raises(RayTaskError) as caught:
            ray.get(reach_from_a_worker.remote(contact, storage_behind(proxy, PROFILE), path))
        assert OF_PROFILE["aws_access_key_id"] in proxy.keys
    error = caught.value
    assert isinstance(error.cause, LorifError) and "cannot be written" in str(error)
    shown = [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    for content in ("\n".join(shown), pickle.dumps(vars(error)), pickle.dumps(error.cause)):
        assert hits(content) == []


def test_a_traceback_on_demand_shows_no_secret(
    credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an error that nothing expected, so that its text is a library's own."""

    def fail(index: str, overrides: list[str]) -> None:
        raise RuntimeError(page("OddRefusal", ENVIRONMENT.values()))

    monkeypatch.setattr(commands, "run_status", fail)
    with environment(credentials):
        code, out, err = run(capsys, "status", URI, "--json")
    assert code == 1 and "Traceback" in err and "in fail" in err and MARK in err and MARK in out
    assert hits(out + err) == []
