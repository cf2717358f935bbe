"""Invariant: the IAM policies allow exactly the S3 requests of the product, according to a recording."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pytest
import yaml
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.policy_validation import IAMPolicyDocumentValidator

from flows.cli import main
from lorif_core.config import Config, StorageConfig
from lorif_core.config_file import load_config
from lorif_core.errors import UserError
from lorif_core.lifecycle import garbage
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.block_answers import Attribution
from lorif_core.search.index import Index
from lorif_core.tables.datasets import Tables
from lorif_core.tables.store import Store
from tasks.attribute import check_attribution
from tasks.demo.object_store import MotoServer, upload_folder
from tests.integration.s3 import shard_file
from tests.servers.proxy import FaultProxy

AWS = Path(__file__).parents[2] / "infra" / "aws"
BUCKET = "lorif-policies"
INDEX = f"s3://{BUCKET}/indexes/tiny"

_WRITES = (("PUT",), ("PUT", "partNumber", "uploadId"), ("POST", "uploads"), ("POST", "uploadId"))

Permissions = set[tuple[str, str]]  # (IAM action, ARN)


def policy(name: str) -> str:
    return Template((AWS / f"{name}.json").read_text()).substitute(BUCKET=BUCKET)


def statements(name: str) -> list[dict[str, Any]]:
    return json.loads(policy(name))["Statement"]


def allows(name: str, action: str, arn: str) -> bool:
    """Whether a policy allows an action on a resource, according to moto's IAM."""
    return IAMPolicy(policy(name)).is_action_permitted(action, arn) == PermissionResult.PERMITTED


def permissions(request: str) -> Permissions:
    """The permissions that AWS requires for a request, from the Service Authorization Reference of S3.

    A bulk deletion has its keys in the body, which is not recorded; it counts as a deletion of any index key.
    """
    method, _, path = request.partition(" ")
    place = urlsplit(path)
    bucket, _, key = unquote(place.path).lstrip("/").partition("/")
    query = parse_qs(place.query, keep_blank_values=True)
    of_bucket, of_object = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if not key:
        if method == "POST" and "delete" in query:
            return {("s3:DeleteObject", f"{of_bucket}/indexes/any")}
        if method == "GET" and "uploads" in query:
            return {("s3:ListBucketMultipartUploads", of_bucket)}
        if method == "HEAD" or (method == "GET" and query.get("list-type") == ["2"]):
            return {("s3:ListBucket", of_bucket)}
    elif method in ("GET", "HEAD") and not query:
        return {("s3:GetObject", of_object)}
    elif (method, *sorted(query)) in _WRITES:
        return {("s3:PutObject", of_object)}
    elif (method, *query) == ("DELETE", "uploadId"):
        return {("s3:AbortMultipartUpload", of_object)}
    elif (method, *query) == ("DELETE",):
        return {("s3:DeleteObject", of_object)}
    raise AssertionError(f"{request}: add the permission that AWS requires for it")


@pytest.fixture(scope="module")
def used(
    moto: MotoServer,
    prefect_server: None,
    ray_session: None,
    model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Permissions]:
    """The permissions that each role uses: the writer for changes of an index, the reader for query and status."""
    moto.make_bucket(BUCKET)
    upload_folder(moto, model_folder, BUCKET, "models/tiny")
    put = moto.client().put_object
    put(Bucket=BUCKET, Key="queries/q.jsonl", Body=b'{"text": "the cat sees"}\n')
    put(Bucket=BUCKET, Key="corpus/0.jsonl", Body=shard_file(0))
    requests: list[str] = []
    with FaultProxy(moto.url) as proxy:
        proxy.watch = requests.append
        path = tmp_path_factory.mktemp("policies") / "config.yaml"
        path.write_text(yaml.safe_dump(_config(proxy.url)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(garbage, "_UPLOAD_AGE", timedelta(days=-1))
            writer = _record(requests, lambda: _write(moto, str(path), proxy.url))
            patch.setenv("LORIF_CACHE", str(path.parent))  # a reader on a machine with an empty cache
            reader = _record(requests, lambda: _read(proxy.url))
    return {"writer": writer, "reader": reader}


def _record(requests: list[str], work: Callable[[], None]) -> Permissions:
    requests.clear()
    work()
    return {permission for request in requests for permission in permissions(request)}


def _storage(endpoint: str) -> dict[str, Any]:
    return {"endpoint": endpoint, "region": "us-east-1", "allow_http": True}


def _config(endpoint: str) -> dict[str, Any]:
    return {
        "index": INDEX,
        "model": {"path": f"s3://{BUCKET}/models/tiny"},
        "corpus": {"uri": f"s3://{BUCKET}/corpus", "id": "id", "max_length": 64},
        "compute": {"workers": 1, "tokens_per_batch": 2048},
        "storage": _storage(endpoint),
    }


def _write(moto: MotoServer, config: str, endpoint: str) -> None:
    _lorif("build", "-c", config)
    moto.client().put_object(Bucket=BUCKET, Key="corpus/1.jsonl", Body=shard_file(1))
    _lorif("update", "-c", config)
    _lorif("remove", INDEX, "--where", "row < 2", *_place(endpoint))
    _lorif("rollback", INDEX, "1", *_place(endpoint))
    _attribute(load_config(config))
    _write_large(endpoint)
    moto.client().create_multipart_upload(Bucket=BUCKET, Key="indexes/tiny/factors.lance/data/x.lance")
    _lorif("gc", INDEX, "--apply", "--keep", "1", *_place(endpoint))


def _attribute(config: Config) -> None:
    """The requests of `lorif attribute`, in this process; its actors need no more permissions than a query."""
    run = check_attribution(config, f"s3://{BUCKET}/queries/q.jsonl", f"s3://{BUCKET}/answers/1", 2)
    run.begin()
    store = Store(config.index, config.storage)
    for block in run.unanswered_blocks():
        top = Index(store, run.generation).top_k(block.queries, run.k)
        run.save_answers(
            block, [Attribution(*answer) for answer in zip(block.queries, [0.0] * len(top), top, strict=True)]
        )
    write_answers(run.out, store, run.generation, run.answers(), "answers")
    run.clean_up()


def _write_large(endpoint: str) -> None:
    """Write a fragment that Lance uploads in parts, and one that fails in the middle."""
    schema = pa.schema([("codes", pa.binary(2**20))])
    tables = Tables(INDEX, StorageConfig(**_storage(endpoint)))
    tables.create("large", schema)

    def batches(fail: bool) -> Iterator[pa.RecordBatch]:
        for _ in range(12):
            yield pa.record_batch([pa.array([bytes(2**20)], pa.binary(2**20))], schema=schema)
        if fail:
            raise UserError("write failed")

    tables.write("large", batches(False), schema)
    with pytest.raises(UserError, match="write failed"):
        tables.write("large", batches(True), schema)


def _read(endpoint: str) -> None:
    _lorif("query", INDEX, "--text", "the cat", *_place(endpoint))
    _lorif("status", INDEX, *_place(endpoint))


def _place(endpoint: str) -> list[str]:
    return [f"storage.{key}={value}" for key, value in _storage(endpoint).items()]


def _lorif(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_a_role_has_every_permission_that_it_uses(role: str, used: dict[str, Permissions]) -> None:
    refused = {permission for permission in used[role] if not allows(role, *permission)}
    assert used[role] and not refused


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_a_role_has_no_permission_that_it_does_not_use(role: str, used: dict[str, Permissions]) -> None:
    """The recording has every action on every resource of the policy."""
    unused = [
        (action, resource)
        for statement in statements(role)
        for action in statement["Action"]
        for resource in _listed(statement["Resource"])
        if not any(name == action and fnmatchcase(arn, resource) for name, arn in used[role])
    ]
    assert not unused


@pytest.mark.parametrize("name", ["writer", "reader"])
def test_actions_have_no_wildcards_and_resources_are_parts_of_the_bucket(name: str) -> None:
    IAMPolicyDocumentValidator(policy(name)).validate()
    for statement in statements(name):
        assert statement["Effect"] == "Allow" and not {"NotAction", "NotResource"} & statement.keys()
        assert all(re.fullmatch(r"s3:[A-Za-z]+", action) for action in statement["Action"])
        for resource in _listed(statement["Resource"]):
            assert re.fullmatch(rf"arn:aws:s3:::{BUCKET}(/[a-z]+(/\*(/_lorif/\*)?)?)?", resource)


@pytest.mark.parametrize(
    ("role", "action", "key"),
    [
        ("writer", "s3:PutObject", "corpus/0.jsonl"),
        ("writer", "s3:DeleteObject", "models/tiny/model.safetensors"),
        ("writer", "s3:DeleteObject", "answers/1/scores.parquet"),
        ("writer", "s3:PutBucketPolicy", ""),
        ("reader", "s3:PutObject", "indexes/tiny/_lorif/lease/000000000001.json"),
        ("reader", "s3:DeleteObject", "indexes/tiny/factors.lance/data/x.lance"),
        ("reader", "s3:GetObject", "corpus/0.jsonl"),
    ],
)
def test_other_actions_are_refused(role: str, action: str, key: str) -> None:
    assert not allows(role, action, f"arn:aws:s3:::{BUCKET}/{key}".rstrip("/"))
    assert not allows(role, "s3:GetObject", "arn:aws:s3:::elsewhere/indexes/tiny/x")


def test_corpus_checkpoint_and_queries_are_not_deleted(moto: MotoServer, used: dict[str, Permissions]) -> None:
    """Bulk deletions have their keys in the body, which is not recorded."""
    listing = moto.client().list_objects_v2(Bucket=BUCKET)["Contents"]
    keys = {entry["Key"] for entry in listing if not entry["Key"].startswith("indexes/")}
    answers = {f"answers/1/{name}" for name in ("scores.parquet", "report.html", "summary.json")}
    assert keys >= {"corpus/0.jsonl", "models/tiny/config.json", "queries/q.jsonl", *answers}


def test_lambda_may_assume_the_role_and_gets_only_events_of_the_corpus() -> None:
    trust = json.loads(policy("lambda-trust"))["Statement"]
    assert [statement["Principal"] for statement in trust] == [{"Service": "lambda.amazonaws.com"}]
    pattern = json.loads(policy("corpus-arrivals"))
    assert pattern["detail"] == {
        "bucket": {"name": [BUCKET]},
        "object": {"key": [{"prefix": "corpus/"}]},
    }
    assert (pattern["source"], pattern["detail-type"]) == (["aws.s3"], ["Object Created"])


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
