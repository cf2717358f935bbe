"""Invariant: whatever is wrong with a store or with what lies there is one sentence that names the place and the
likely cause, with exit code 2 for what the user can set right and 1 for a store that fails; nothing is written.
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
    """A bucket with a model and a corpus that are right."""
    moto.make_bucket(BUCKET)
    upload_folder(moto, model_folder, BUCKET, "model")
    moto.client().put_object(Bucket=BUCKET, Key="corpus/a.jsonl", Body=LINES)
    return moto


@dataclass
class World:
    """What a case may spoil."""

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
def world(bucket: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A config that is right, over a proxy that does nothing yet; every case spoils one thing."""
    monkeypatch.setattr(connection, "_SECONDS_OF_SILENCE", 0.5)
    with FaultProxy(bucket.url) as proxy:
        raw = {
            "index": f"s3://{BUCKET}/never-written",
            "model": {"path": f"s3://{BUCKET}/model"},
            "corpus": {"uri": f"s3://{BUCKET}/corpus", "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "compute": {"workers": 1},
            "storage": {"endpoint": proxy.url, "region": "us-east-1", "allow_http": True},
        }
        yield World(raw, bucket, proxy, monkeypatch, tmp_path)


Spoil = Callable[[World], None]


def answer(status: int, code: str, match: str = "", **more: str) -> Spoil:
    def spoil(world: World) -> None:
        world.proxy.fault = Fault("answer", match=match, status=status, code=code, **more)

    return spoil


def fault(kind: Any, match: str = "", seconds: float = 0.0) -> Spoil:
    def spoil(world: World) -> None:
        world.proxy.fault = Fault(kind, match=match, seconds=seconds)

    return spoil


def keys(**sections: Any) -> Spoil:
    def spoil(world: World) -> None:
        for name, section in sections.items():
            if isinstance(section, dict):
                world.raw[name].update(section)
            else:
                world.raw[name] = section

    return spoil


def variables(**values: str | None) -> Spoil:
    def spoil(world: World) -> None:
        for name, value in values.items():
            if value is None:
                world.environment.delenv(name)
            else:
                world.environment.setenv(name, value)

    return spoil


def several(*parts: Spoil) -> Spoil:
    def spoil(world: World) -> None:
        for part in parts:
            part(world)

    return spoil


def model_of(prefix: str, files: dict[str, bytes]) -> Spoil:
    def spoil(world: World) -> None:
        for name, body in files.items():
            world.put(f"{prefix}/{name}", body)
        world.raw["model"]["path"] = f"s3://{BUCKET}/{prefix}"

    return spoil


def corpus_of(name: str, body: bytes) -> Spoil:
    return lambda world: world.corpus(f"corpora/{name}", body)


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["the cat"] * 500}), sink)
    return sink.getvalue()


def no_credentials(world: World) -> None:
    variables(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)(world)
    variables(AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_CONFIG_FILE="/dev/null")(world)


def truncated_weights(world: World) -> None:
    client = world.server.client()
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="model/")["Contents"]]
    files = {
        name.removeprefix("model/"): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names
    }
    weights = files["model.safetensors"]
    model_of("half-model", {**files, "model.safetensors": weights[: len(weights) // 2]})(world)


def adapter_without_base(world: World) -> None:
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x"}
    model_of("adapter", files)(world)


def old_index(world: World) -> None:
    world.raw["index"] = f"s3://{BUCKET}/other"
    world.command = ["query", world.raw["index"], "--text", "x"]


def queries_missing(world: World) -> None:
    world.command = ["attribute", "--queries", f"s3://{BUCKET}/no.jsonl", "--out", str(world.folder / "out")]


def out_not_empty(world: World) -> None:
    out = world.put("out/mine.txt", b"precious").rsplit("/", 1)[0]
    world.command = ["attribute", "--queries", "q.jsonl", "--out", out]


PLACE = f"s3://{BUCKET}"
REGION = "<Region>eu-west-3</Region>"
CASES: dict[str, tuple[Spoil, int, list[str]]] = {
    "missing bucket of the index": (
        keys(index="s3://no-bucket/x"),
        2,
        ["s3://no-bucket/x", "bucket does not exist"],
    ),
    "missing bucket of the corpus": (keys(corpus={"uri": "s3://no-bucket/c"}), 2, ["s3://no-bucket/c", "bucket"]),
    "missing bucket of the model": (keys(model={"path": "s3://no-bucket/m"}), 2, ["s3://no-bucket/m", "bucket"]),
    "no such corpus": (keys(corpus={"uri": f"{PLACE}/nothing"}), 2, [f"{PLACE}/nothing", "does not exist"]),
    "no such model": (keys(model={"path": f"{PLACE}/nothing"}), 2, [f"{PLACE}/nothing", "does not exist"]),
    "name that no bucket has": (keys(index="s3://No_Bucket!/x"), 2, ["s3://No_Bucket!/x"]),
    "unknown access key": (answer(403, "InvalidAccessKeyId"), 2, [PLACE, "AWS_ACCESS_KEY_ID"]),
    "wrong secret key": (answer(403, "SignatureDoesNotMatch"), 2, [PLACE, "AWS_SECRET_ACCESS_KEY"]),
    "expired token": (answer(400, "ExpiredToken"), 2, [PLACE, "session token has expired"]),
    "invalid token": (answer(400, "InvalidToken"), 2, [PLACE, "session token is not valid"]),
    "clock skew": (answer(403, "RequestTimeTooSkewed"), 2, [PLACE, "clock"]),
    "no credentials": (no_credentials, 2, [PLACE, "no credentials were found"]),
    "half of the credentials": (variables(AWS_SECRET_ACCESS_KEY=None), 2, [PLACE, "credentials are incomplete"]),
    "unknown profile": (keys(storage={"profile": "nobody"}), 2, ["profile", "nobody"]),
    "nothing at the endpoint": (keys(storage={"endpoint": "http://127.0.0.1:9"}), 2, [PLACE, "nothing answers"]),
    "no such host": (keys(storage={"endpoint": "http://s3.invalid"}), 2, [PLACE, "nothing answers"]),
    "endpoint that is not a URL": (
        keys(storage={"endpoint": "localhost:9000"}),
        2,
        ["localhost:9000", "https://"],
    ),
    "http without consent": (keys(storage={"allow_http": False}), 2, ["storage.endpoint", "not encrypted"]),
    "http without consent, from the environment": (
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
    "TLS asked of a plain port": (
        lambda world: world.raw["storage"].update(endpoint=world.proxy.url.replace("http:", "https:")),
        2,
        [PLACE, "TLS"],
    ),
    "something that is not S3": (answer(200, "", page="<html>hello</html>"), 2, [PLACE, "does not speak S3"]),
    "another region": (answer(400, "AuthorizationHeaderMalformed", extra=REGION), 2, [PLACE, "eu-west-3"]),
    "a redirect to another region": (answer(301, "PermanentRedirect", extra=REGION), 2, [PLACE, "storage.region"]),
    "no permission to write": (answer(403, "AccessDenied", "^PUT"), 2, ["never-written may not be written"]),
    "no permission to read": (answer(403, "AccessDenied", "/corpus"), 2, [f"{PLACE}/corpus", "may not be read"]),
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
    "an adapter without base": (adapter_without_base, 2, [f"{PLACE}/adapter", "base"]),
    "a truncated gzip file": (corpus_of("x.jsonl.gz", gzip.compress(LINES)[:-9]), 2, ["x.jsonl.gz", "cut off"]),
    "a truncated parquet file": (corpus_of("x.parquet", parquet()[:-50]), 2, ["x.parquet", "cut off"]),
    "an empty object": (corpus_of("y.parquet", b""), 2, ["y.parquet", "cut off after 0 bytes"]),
    "what is no gzip file": (corpus_of("y.jsonl.gz", LINES), 2, ["y.jsonl.gz", "is not a .gz file"]),
    "no index to ask": (old_index, 2, [f"{PLACE}/other", "does not exist", "lorif build"]),
    "no index to attribute with": (queries_missing, 2, [f"{PLACE}/never-written", "does not exist"]),
    "an output place in use": (out_not_empty, 2, [f"{PLACE}/out", "not empty"]),
    "a store that is full": (answer(507, "QuotaExceeded", "^PUT"), 1, ["never-written", "full"]),
    "a busy store": (answer(503, "SlowDown"), 1, [PLACE, "SlowDown"]),
    "a store with a fault": (answer(500, "InternalError"), 1, [PLACE, "InternalError"]),
    "connections that are reset": (fault("reset_before"), 1, [PLACE, "hanging up"]),
    "answers that never come": (fault("stall", seconds=60), 1, [PLACE, "not answering in time"]),
    "answers that are cut off": (fault("truncate"), 1, [PLACE, "hanging up"]),
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_the_right_exit_code(case: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, code, expected = CASES[case]
    spoil(world)
    config = world.folder / "config.yaml"
    config.write_text(yaml.safe_dump(world.raw))
    command, *arguments = world.command
    if command == "query":
        arguments += [f"storage.{key}={json.dumps(value)}" for key, value in world.raw["storage"].items()]
    else:
        arguments += ["-c", str(config)]
    found, out, err = run(capsys, command, *arguments, "--json")
    message = json.loads(out.splitlines()[-1]).get("error", "no error")
    assert found == code, message
    assert all(part in message for part in expected), message
    assert "\n" not in message and "hush" not in out + err
    assert [line for line in err.splitlines() if line.startswith("lorif: error")] == [f"lorif: error: {message}"]
    assert not any(noise in message for noise in ("LanceError", "botocore", "aiohttp", "/rust/", "<?xml")), message
    listed = world.server.client().list_objects_v2(Bucket=BUCKET, Prefix="never-written")
    assert listed["KeyCount"] == 0, "nothing may be written"


def test_there_are_thirty_cases() -> None:
    assert len(CASES) >= 30
