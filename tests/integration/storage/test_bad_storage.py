"""Invariant: every error of a store or a stored file is one sentence with the location and the likely cause, and
nothing is written; the exit code is 2 if the user can correct the error and 1 if the store fails.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lorif_core.storage import connection
from tasks.demo.object_store import MotoServer, upload_folder
from tests.integration.lorif import run
from tests.servers.proxy import Fault, FaultProxy

BUCKET = "bad-storage"
LINES = b"".join(b'{"text": "the cat sees %d"}\n' % row for row in range(40))


@pytest.fixture(scope="module")
def bucket(moto: MotoServer, model_folder: Path) -> MotoServer:
    """A bucket with a valid model and corpus."""
    moto.make_bucket(BUCKET)
    upload_folder(moto, model_folder, BUCKET, "model")
    moto.client().put_object(Bucket=BUCKET, Key="corpus/a.jsonl", Body=LINES)
    return moto


@dataclass
class Scenario:
    """A valid config and store, in which each case breaks one thing."""

    raw: dict[str, Any]
    server: MotoServer
    proxy: FaultProxy
    environment: pytest.MonkeyPatch
    folder: Path
    command: list[str] = field(default_factory=lambda: ["check"])

    def put(self, key: str, body: bytes) -> str:
        self.server.client().put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def corpus(self, key: str, body: bytes) -> None:
        self.raw["corpus"]["uri"] = self.put(key, body)


@pytest.fixture
def scenario(bucket: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scenario]:
    """A valid config whose endpoint is a proxy without faults."""
    monkeypatch.setattr(connection, "_READ_TIMEOUT_SECONDS", 0.5)
    with FaultProxy(bucket.url) as proxy:
        raw = {
            "index": f"s3://{BUCKET}/never-written",
            "model": {"path": f"s3://{BUCKET}/model"},
            "corpus": {"uri": f"s3://{BUCKET}/corpus", "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "compute": {"workers": 1},
            "storage": {"endpoint": proxy.url, "region": "us-east-1", "allow_http": True},
        }
        yield Scenario(raw, bucket, proxy, monkeypatch, tmp_path)


Break = Callable[[Scenario], None]


def answer(status: int, code: str, match: str = "", **more: str) -> Break:
    def apply(scenario: Scenario) -> None:
        scenario.proxy.fault = Fault("answer", match=match, status=status, code=code, **more)

    return apply


def fault(kind: Any, match: str = "", seconds: float = 0.0) -> Break:
    def apply(scenario: Scenario) -> None:
        scenario.proxy.fault = Fault(kind, match=match, seconds=seconds)

    return apply


def keys(**sections: Any) -> Break:
    def apply(scenario: Scenario) -> None:
        for name, section in sections.items():
            if isinstance(section, dict):
                scenario.raw[name].update(section)
            else:
                scenario.raw[name] = section

    return apply


def variables(**values: str | None) -> Break:
    def apply(scenario: Scenario) -> None:
        for name, value in values.items():
            if value is None:
                scenario.environment.delenv(name)
            else:
                scenario.environment.setenv(name, value)

    return apply


def several(*parts: Break) -> Break:
    def apply(scenario: Scenario) -> None:
        for part in parts:
            part(scenario)

    return apply


def model_of(prefix: str, files: dict[str, bytes]) -> Break:
    def apply(scenario: Scenario) -> None:
        for name, body in files.items():
            scenario.put(f"{prefix}/{name}", body)
        scenario.raw["model"]["path"] = f"s3://{BUCKET}/{prefix}"

    return apply


def corpus_of(name: str, body: bytes) -> Break:
    return lambda scenario: scenario.corpus(f"corpora/{name}", body)


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["the cat"] * 500}), sink)
    return sink.getvalue()


def no_credentials(scenario: Scenario) -> None:
    variables(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)(scenario)
    variables(AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_CONFIG_FILE="/dev/null")(scenario)


def truncated_weights(scenario: Scenario) -> None:
    client = scenario.server.client()
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="model/")["Contents"]]
    files = {
        name.removeprefix("model/"): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names
    }
    weights = files["model.safetensors"]
    model_of("half-model", {**files, "model.safetensors": weights[: len(weights) // 2]})(scenario)


def adapter_without_base(scenario: Scenario) -> None:
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x"}
    model_of("adapter", files)(scenario)


def missing_index(scenario: Scenario) -> None:
    scenario.raw["index"] = f"s3://{BUCKET}/other"
    scenario.command = ["query", scenario.raw["index"], "--text", "x"]


def missing_queries(scenario: Scenario) -> None:
    scenario.command = ["attribute", "--queries", f"s3://{BUCKET}/no.jsonl", "--out", str(scenario.folder / "out")]


def out_not_empty(scenario: Scenario) -> None:
    out = scenario.put("out/mine.txt", b"precious").rsplit("/", 1)[0]
    scenario.command = ["attribute", "--queries", f"{URI}/q.jsonl", "--out", out]


URI = f"s3://{BUCKET}"
REGION = "<Region>eu-west-3</Region>"
CASES: dict[str, tuple[Break, int, list[str]]] = {
    "missing bucket of the index": (
        keys(index="s3://no-bucket/x"),
        2,
        ["s3://no-bucket/x", "bucket does not exist"],
    ),
    "missing bucket of the corpus": (keys(corpus={"uri": "s3://no-bucket/c"}), 2, ["s3://no-bucket/c", "bucket"]),
    "missing bucket of the model": (keys(model={"path": "s3://no-bucket/m"}), 2, ["s3://no-bucket/m", "bucket"]),
    "no such corpus": (keys(corpus={"uri": f"{URI}/nothing"}), 2, [f"{URI}/nothing", "does not exist"]),
    "no such model": (keys(model={"path": f"{URI}/nothing"}), 2, [f"{URI}/nothing", "does not exist"]),
    "invalid bucket name": (keys(index="s3://No_Bucket!/x"), 2, ["s3://No_Bucket!/x"]),
    "unknown access key": (answer(403, "InvalidAccessKeyId"), 2, [URI, "AWS_ACCESS_KEY_ID"]),
    "wrong secret key": (answer(403, "SignatureDoesNotMatch"), 2, [URI, "AWS_SECRET_ACCESS_KEY"]),
    "expired token": (answer(400, "ExpiredToken"), 2, [URI, "session token has expired"]),
    "invalid token": (answer(400, "InvalidToken"), 2, [URI, "session token is not valid"]),
    "clock skew": (answer(403, "RequestTimeTooSkewed"), 2, [URI, "clock"]),
    "no credentials": (no_credentials, 2, [URI, "no credentials were found"]),
    "half of the credentials": (variables(AWS_SECRET_ACCESS_KEY=None), 2, [URI, "credentials are incomplete"]),
    "unknown profile": (keys(storage={"profile": "nobody"}), 2, ["profile", "nobody"]),
    "nothing at the endpoint": (keys(storage={"endpoint": "http://127.0.0.1:9"}), 2, [URI, "nothing answers"]),
    "no such host": (keys(storage={"endpoint": "http://s3.invalid"}), 2, [URI, "nothing answers"]),
    "endpoint that is not a URL": (
        keys(storage={"endpoint": "localhost:9000"}),
        2,
        ["localhost:9000", "https://"],
    ),
    "http that is not allowed": (keys(storage={"allow_http": False}), 2, ["storage.endpoint", "not encrypted"]),
    "http that is not allowed, from the environment": (
        several(keys(storage={"allow_http": False, "endpoint": None}), variables(AWS_ENDPOINT_URL="http://x:1")),
        2,
        ["AWS_ENDPOINT_URL = http://x:1", "storage.allow_http"],
    ),
    "credentials in the endpoint": (
        keys(storage={"endpoint": "https://me:hush@s3.x"}),
        2,
        ["carries credentials"],
    ),
    "credentials in a URI": (keys(index="s3://me:hush@bucket/x"), 2, ["carries credentials"]),
    "credentials in the config": (keys(storage={"secret_key": "hush"}), 2, ["storage.secret_key", "environment"]),
    "TLS to a plain port": (
        lambda scenario: scenario.raw["storage"].update(endpoint=scenario.proxy.url.replace("http:", "https:")),
        2,
        [URI, "TLS"],
    ),
    "something that is not S3": (answer(200, "", page="<html>hello</html>"), 2, [URI, "does not speak S3"]),
    "another region": (answer(400, "AuthorizationHeaderMalformed", extra=REGION), 2, [URI, "eu-west-3"]),
    "a redirect to another region": (answer(301, "PermanentRedirect", extra=REGION), 2, [URI, "storage.region"]),
    "no permission to write": (answer(403, "AccessDenied", "^PUT"), 2, ["never-written may not be written"]),
    "no permission to read": (answer(403, "AccessDenied", "/corpus"), 2, [f"{URI}/corpus", "may not be read"]),
    "no conditional put": (answer(501, "NotImplemented", "^PUT"), 2, ["never-written", "does not support"]),
    "another scheme": (keys(index="gs://bucket/x"), 2, ["gs://bucket/x", "s3://"]),
    "a presigned URL": (keys(corpus={"uri": "https://s3.x/c?X-Amz-Signature=hush"}), 2, ["https://s3.x/c"]),
    "a checkpoint without weights": (
        model_of("empty-model", {"config.json": b"{}"}),
        2,
        ["empty-model", "weights"],
    ),
    "a checkpoint without config": (
        model_of("odd-model", {"a.safetensors": b"x"}),
        2,
        ["odd-model", "config"],
    ),
    "a checkpoint of pickles": (
        model_of("pickled-model", {"config.json": b"{}", "pytorch_model.bin": b"\x80"}),
        2,
        ["pickled-model", "allow_pickle"],
    ),
    "a checkpoint with half its weights": (truncated_weights, 2, ["half-model", "cannot be loaded"]),
    "an adapter without base": (adapter_without_base, 2, [f"{URI}/adapter", "base"]),
    "a truncated gzip file": (corpus_of("x.jsonl.gz", gzip.compress(LINES)[:-9]), 2, ["x.jsonl.gz", "cut off"]),
    "a truncated parquet file": (corpus_of("x.parquet", parquet()[:-50]), 2, ["x.parquet", "cut off"]),
    "an empty object": (corpus_of("y.parquet", b""), 2, ["y.parquet", "cut off after 0 bytes"]),
    "a file that is not gzip": (corpus_of("y.jsonl.gz", LINES), 2, ["y.jsonl.gz", "is not a .gz file"]),
    "no index to query": (missing_index, 2, [f"{URI}/other", "does not exist", "lorif build"]),
    "no index to attribute with": (missing_queries, 2, [f"{URI}/never-written", "does not exist"]),
    "an output folder that is not empty": (out_not_empty, 2, [f"{URI}/out", "not empty"]),
    "a store that is full": (answer(507, "QuotaExceeded", "^PUT"), 1, ["never-written", "full"]),
    "a busy store": (answer(503, "SlowDown"), 1, [URI, "SlowDown"]),
    "a store with a fault": (answer(500, "InternalError"), 1, [URI, "InternalError"]),
    "connections that are reset": (fault("reset_before"), 1, [URI, "closes the connection"]),
    "responses that never come": (fault("stall", seconds=60), 1, [URI, "does not answer in time"]),
    "responses that are cut off": (fault("truncate"), 1, [URI, "closes the connection"]),
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_the_right_exit_code(
    case: str, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    break_one_thing, code, expected = CASES[case]
    break_one_thing(scenario)
    config = scenario.folder / "config.yaml"
    config.write_text(yaml.safe_dump(scenario.raw))
    command, *arguments = scenario.command
    if command == "query":
        arguments += [f"storage.{key}={json.dumps(value)}" for key, value in scenario.raw["storage"].items()]
    else:
        arguments += ["-c", str(config)]
    exit_code, out, err = run(capsys, command, *arguments, "--json")
    message = json.loads(out.splitlines()[-1]).get("error", "no error")
    assert exit_code == code, message
    assert all(part in message for part in expected), message
    assert "\n" not in message and "hush" not in out + err
    assert [line for line in err.splitlines() if line.startswith("lorif: error")] == [f"lorif: error: {message}"]
    assert not any(noise in message for noise in ("LanceError", "botocore", "aiohttp", "/rust/", "<?xml")), message
    listing = scenario.server.client().list_objects_v2(Bucket=BUCKET, Prefix="never-written")
    assert listing["KeyCount"] == 0, "nothing may be written"


def test_there_are_thirty_cases() -> None:
    assert len(CASES) >= 30
