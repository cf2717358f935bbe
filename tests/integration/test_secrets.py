"""Invariant: a credential given in the environment or in a profile, or put into CONFIG by mistake, is in nothing
that is written, logged, printed, recorded or raised; and no object of an index is a pickle.
"""

import base64
import json
import logging
import os
import pickle
import pickletools
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
from ray.exceptions import RayTaskError

import lorif_core as lc
from flows import commands
from flows.build import build
from lorif_core.answers import Attribution, write_answers
from lorif_core.config import Config, StorageConfig
from lorif_core.connection import lance_options
from lorif_core.errors import LorifError
from lorif_core.faults import without_secrets
from lorif_core.objects import Objects
from lorif_core.queries import Query
from lorif_core.tables import Tables
from tasks.demo_store import MotoServer
from tasks.environment import environment
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config
from tests.integration.test_bad_input import run
from tests.servers.proxy import Fault, FaultProxy

SHARDS = 4
TASKS = 3 + 5 + 3 + 1  # of the refused build, the one that ends, the attribution and the library's build
TABLES = ("factors", "curvature", "generations", "skipped")
INDEX = "secrets-index"
REFUSED = "secrets-index-refused"
ANSWERS = "secrets-answers"
PROFILE = "planted"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDENVIRON01",
    "AWS_SECRET_ACCESS_KEY": "planted-secret/Env+7q9ZkW2xTb",
    "AWS_SESSION_TOKEN": "planted-token/Env+FwoGZXIvYXdzEJr==",
    "HF_TOKEN": "hf_plantedTokenOfTheHubQ7w9Zk",
    "RAY_AUTH_TOKEN": "5ec2e7a11ed" + "c0ffee" * 8,
}
OF_PROFILE = {
    "aws_access_key_id": "AKIAPLANTEDPROFILE01",
    "aws_secret_access_key": "planted-secret/Profile+3mXc8Rv1Lp",
    "aws_session_token": "planted-token/Profile+IQoJb3JpZ2luX2==",
}
IN_CONFIG = "planted-secret/Config+Jd84nQz0sY"
MARK = "told/by-the-store"  # no secret, so it must be wherever the texts of a store come through
SECRETS = [*ENVIRONMENT.values(), *OF_PROFILE.values(), IN_CONFIG]


def forms(secret: str) -> set[bytes]:
    """A secret as it is, quoted for a URL, and what of its base64 does not depend on what stands around it."""
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"\0" * offset + secret.encode())[4:-4].decode())
    return {form.encode() for form in found}


FORMS = {text: forms(text) for text in (*SECRETS, MARK)}


def shows(content: str | bytes, text: str) -> bool:
    """Whether a text is somewhere in a content, in any form."""
    content = content.encode() if isinstance(content, str) else content
    return any(form in content for form in FORMS.get(text) or forms(text))


def hits(content: str | bytes) -> list[str]:
    """The planted secrets that are somewhere in a content."""
    return [secret for secret in SECRETS if shows(content, secret)]


def page(code: str, quoted: Collection[str]) -> str:
    """An error page as S3 writes it, which quotes the request; and in its message too, as others might."""
    told = "; ".join([MARK, *quoted])
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>refused: {told}</Message>'
        f"<AWSAccessKeyId>{told}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256\n{told}</StringToSign>"
        f"<CanonicalRequest>PUT\nx-amz-security-token:{told}</CanonicalRequest></Error>"
    )


def refusal(code: str, profile: str | None, but_first_contact: bool = False) -> Fault:
    """A page in answer to all requests, or to all but the look at a bucket that comes before the others.

    It quotes the credentials that are in use: those of the profile, if there is one.
    """
    match = r"^(?!.*max-keys=1(&|$))" if but_first_contact else ""
    statuses = {"OddRefusal": 400, "SlowDown": 503}
    quoted = OF_PROFILE.values() if profile else ENVIRONMENT.values()
    return Fault("answer", match=match, status=statuses.get(code, 403), page=page(code, quoted))


@contextmanager
def served(proxy: FaultProxy, fault: Fault) -> Iterator[None]:
    """The fault is what the proxy does, for the length of the block."""
    proxy.fault, proxy.hit = fault, 0
    try:
        yield
    finally:
        proxy.fault = None


class Overhearing(FaultProxy):
    """Also keeps the access keys that it sees, which proves whose credentials are used."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.keys: set[str] = set()
        keys, handler = self.keys, self._server.RequestHandlerClass

        class Handler(handler):
            def _body(self) -> bytes:
                keys.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
                return super()._body()

        self._server.RequestHandlerClass = Handler


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The planted environment; it names a file with the planted profile."""
    path = tmp_path_factory.mktemp("credentials") / "credentials"
    path.write_text("\n".join([f"[{PROFILE}]", *(f"{key} = {value}" for key, value in OF_PROFILE.items()), ""]))
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": os.devnull}
    return {**ENVIRONMENT, **files, "RAY_AUTH_MODE": "token", "LORIF_DEBUG": "1"}


@pytest.fixture(scope="module")
def proxy(s3_place: MotoServer) -> Iterator[Overhearing]:
    put_shards(s3_place, "secrets-corpus", range(SHARDS))
    with Overhearing(s3_place.url) as listening:
        yield listening


@dataclass
class Evidence:
    """All that some runs have left behind: by kind of place, what was found there."""

    found: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, place: str, name: str, content: str | bytes) -> None:
        self.found.setdefault(place, {})[name] = content.encode() if isinstance(content, str) else content

    def add_folder(self, place: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.add(place, str(path.relative_to(folder)), path.read_bytes())

    def add_objects(self, place: str, server: MotoServer, prefix: str) -> None:
        pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        for entry in (entry for found in pages for entry in found.get("Contents", [])):
            body = server.client().get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            self.add(place, entry["Key"], body)

    def add_database(self, path: str) -> None:
        """Every table of Prefect's database, row by row; some of them as places of their own."""
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                rows = database.execute(f'SELECT * FROM "{name}"').fetchall()
                self.add(OF_PREFECT.get(name, "prefect: the rest"), name, "\n".join(map(repr, rows)))


OF_PREFECT = {
    "flow_run": "prefect: parameters",
    "task_run": "prefect: tasks",
    "flow_run_state": "prefect: states",
    "task_run_state": "prefect: task states",
    "log": "prefect: logs",
    "artifact": "prefect: artifacts",
    "events": "prefect: events",
}


class Runs:
    """`lorif` in processes of its own, with the planted credentials, in folders that hold nothing else."""

    def __init__(self, config: Config, credentials: dict[str, str], folder: Path) -> None:
        self.evidence = Evidence()
        self.folder = folder  # with a short path: Ray makes sockets in it
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
        folders = {"RAY_TMPDIR": "ray", "LORIF_CACHE": "cache", "PREFECT_HOME": "prefect", "TMPDIR": "tmp"}
        for name in folders.values():
            (folder / name).mkdir()
        places = {key: str(folder / name) for key, name in folders.items()}
        self._environment = {**os.environ, **credentials, **places, "PREFECT_API_URL": PREFECT_API_URL.value()}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command, *rest = arguments
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "lorif"), command, "-c", str(self._config), *rest],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment,
        )  # fmt: skip

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> int:
        out, err = process.communicate(timeout=240)
        self.evidence.add("output", f"{name} stdout", out)
        self.evidence.add("output", f"{name} stderr", err)
        return process.returncode

    def said(self, name: str) -> str:
        return "".join(self.evidence.found["output"][f"{name} {where}"].decode() for where in ("stdout", "stderr"))


@pytest.fixture(scope="module")
def runs(
    s3_place: MotoServer, proxy: Overhearing, credentials: dict[str, str], prefect_server: None
) -> Iterator[Runs]:
    """A build that is refused at its second receipt, one that ends, an attribution; and what they left."""
    folder = Path(tempfile.mkdtemp(prefix="ls"))
    config = s3_config(proxy.url, INDEX, "secrets-corpus", compute={"workers": 1}, curvature={"kind": "none"})
    made = Runs(config, credentials, folder)
    ending = made.start("build")
    try:
        refuse_a_build(made, s3_place)
        assert made.finish("build", ending) == 0, made.said("build")
        assert proxy.keys == {ENVIRONMENT["AWS_ACCESS_KEY_ID"]}
        attribute(made, proxy)
        with environment(credentials):
            refuse_the_library(config, proxy)
            answer_locally(config, str(folder / "answers"))
        collect(made, s3_place)
        yield made
    finally:
        if ending.poll() is None:
            ending.kill()
        shutil.rmtree(folder, ignore_errors=True)


def refuse_a_build(made: Runs, server: MotoServer) -> None:
    """With the credentials of the profile; the page is one that nothing is known of, so its text is shown."""
    receipts: list[str] = []

    def refuse_the_second_receipt(request: str) -> None:
        if request.startswith("PUT") and "/receipts/" in request:
            receipts.append(request)
            if len(receipts) == 2:
                proxy.fault = refusal("OddRefusal", PROFILE)

    with Overhearing(server.url) as proxy:
        proxy.watch = refuse_the_second_receipt
        words = [f"index=s3://{BUCKET}/{REFUSED}", f"storage.endpoint={proxy.url}", f"storage.profile={PROFILE}"]
        code = made.finish("refused build", made.start("build", *words))
        assert code == 1 and proxy.hit > 0 and MARK in made.said("refused build"), made.said("refused build")
        assert proxy.keys == {OF_PROFILE["aws_access_key_id"]}


def attribute(made: Runs, proxy: Overhearing) -> None:
    """With the credentials of the profile, into the object store."""
    queries = made.folder / "queries.jsonl"
    queries.write_text('{"text": "the cat sees it"}\n')
    proxy.keys.clear()
    arguments = ["--queries", str(queries), "--out", f"s3://{BUCKET}/{ANSWERS}", f"storage.profile={PROFILE}"]
    assert made.finish("attribute", made.start("attribute", *arguments)) == 0, made.said("attribute")
    assert proxy.keys == {OF_PROFILE["aws_access_key_id"]}


def refuse_the_library(config: Config, proxy: Overhearing) -> None:
    """The flow without the command line, which keeps tracebacks of our errors out of Prefect's logs."""
    storage = config.storage.model_copy(update={"profile": PROFILE})
    with unfiltered_logs(), served(proxy, refusal("OddRefusal", PROFILE)), pytest.raises(LorifError, match=MARK):
        build(config.model_copy(update={"storage": storage}))


@contextmanager
def unfiltered_logs() -> Iterator[None]:
    """Without the filters that the command line has added, if an earlier test has called it in this process."""
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")]
    filters = [logger.filters[:] for logger in loggers]
    for logger in loggers:
        logger.filters.clear()
    try:
        yield
    finally:
        for logger, kept in zip(loggers, filters, strict=True):
            logger.filters[:] = kept


def answer_locally(config: Config, out: str) -> None:
    index = lc.open_index(config.index, config.storage)
    query = Query("q", text="the cat sees it")
    (top,) = index.top_k([{"text": query.text}], 5, model=config.model)
    write_answers(out, index.store, index.generation, [Attribution(query, 1.0, top)], "Local answers")


def collect(made: Runs, server: MotoServer) -> None:
    """Everything that is where the runs could leave something, tables also as they are read."""
    evidence = made.evidence
    evidence.add_objects("index", server, f"{INDEX}/")
    evidence.add_objects("index", server, f"{REFUSED}/")
    evidence.add_objects("receipts", server, f"{REFUSED}/_lorif/receipts/")
    evidence.add_objects("answers", server, f"{ANSWERS}/")
    evidence.add_folder("local answers", made.folder / "answers")
    tables = Tables(f"s3://{BUCKET}/{INDEX}", StorageConfig(**server.storage()))
    for name in TABLES:
        evidence.add("index, decoded", name, repr(tables.read(name).to_pylist()))
    scores = pa.BufferReader(evidence.found["answers"][f"{ANSWERS}/scores.parquet"])
    evidence.add("answers, decoded", "scores", repr(pq.read_table(scores).to_pylist()))
    evidence.add_folder("ray", made.folder / "ray")
    for name in ("cache", "prefect", "tmp"):
        evidence.add_folder("node", made.folder / name)
    path = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2]
    await_prefect(path)
    evidence.add_database(path)


def await_prefect(path: str) -> None:
    """Prefect writes task runs and logs some seconds after they are done."""
    ended = (
        "SELECT count(*) FROM task_run JOIN flow_run ON flow_run.id = task_run.flow_run_id "
        f"WHERE flow_run.parameters LIKE '%{INDEX}%' AND task_run.state_type IN ('COMPLETED', 'FAILED')"
    )
    logged = f"SELECT count(*) FROM log WHERE message LIKE '%{MARK}%'"
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        for count, query in ((TASKS, ended), (1, logged)):
            while database.execute(query).fetchone()[0] < count:
                assert time.monotonic() < deadline, f"Prefect has not written: {query}"
                time.sleep(0.5)


CONTROLS = {
    "output": (6, MARK),
    "receipts": (1, f".jsonl[0:{ROWS_PER_SHARD}]"),
    "index": (20, BUCKET),
    "index, decoded": (len(TABLES), BUCKET),
    "answers": (3, BUCKET),
    "answers, decoded": (1, f".jsonl[0:{ROWS_PER_SHARD}]"),
    "local answers": (3, BUCKET),
    "ray": (50, "IndexActor"),
    "node": (8, MARK),
    "prefect: parameters": (1, BUCKET),
    "prefect: tasks": (1, "index shards"),
    "prefect: states": (1, MARK),
    "prefect: task states": (1, MARK),
    "prefect: logs": (1, MARK),
    "prefect: artifacts": (1, BUCKET),
    "prefect: events": (1, MARK),
    "prefect: the rest": (20, BUCKET),
}


@pytest.mark.parametrize("place", CONTROLS)
def test_no_place_shows_a_secret(place: str, runs: Runs) -> None:
    count, control = CONTROLS[place]
    found = runs.evidence.found[place]
    assert len(found) >= count
    assert any(shows(content, control) for content in found.values()), "what is certainly there is not found"
    assert {name: shown for name, content in found.items() if (shown := hits(content))} == {}


def test_every_place_is_looked_at(runs: Runs) -> None:
    assert set(runs.evidence.found) == set(CONTROLS)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_every_form(secret: str) -> None:
    around = f"user:{secret}@host"
    for content in (around, quote(around), repr(around.encode()), json.dumps([around])):
        assert hits(content) == [secret]
    for shift in range(3):
        assert hits(base64.b64encode(f"{'-' * shift}{around}".encode())) == [secret]
    assert hits(pickle.dumps(LorifError(around))) == [secret]
    assert hits(secret[:-5]) == []


# ---- put into CONFIG by mistake ----

Spoil = Callable[[dict[str, Any]], None]


def keys(**sections: Any) -> Spoil:
    def spoil(raw: dict[str, Any]) -> None:
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section

    return spoil


SIGNED = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={IN_CONFIG}"
MISTAKES: dict[str, Spoil] = {
    "a key of its own": keys(storage={"secret_key": IN_CONFIG}),
    "a key at the top": keys(aws_secret_access_key=IN_CONFIG),
    "a section of text": keys(storage=IN_CONFIG),
    "a value of another kind": keys(storage={"allow_http": IN_CONFIG}),
    "below the profile": keys(storage={"profile": {"aws_secret_access_key": IN_CONFIG}}),
    "below the index": lambda raw: raw.update(index={"uri": "s3://b/x", "secret": IN_CONFIG}),
    "endpoint": keys(storage={"endpoint": f"https://key:{IN_CONFIG}@host"}),
    "endpoint, quoted": keys(storage={"endpoint": f"https://key:{quote(IN_CONFIG, safe='')}@host"}),
    "endpoint without scheme": keys(storage={"endpoint": f"key:{IN_CONFIG}@host"}),
    "endpoint with a query": keys(storage={"endpoint": f"https://host/?{SIGNED}"}),
    "endpoint that nothing needs": keys(
        index="./index",
        corpus={"uri": "./corpus"},
        model={"path": "./model"},
        storage={"endpoint": f"https://key:{IN_CONFIG}@host"},
    ),
    "index": keys(index=f"s3://key:{IN_CONFIG}@{BUCKET}/index"),
    "index, by its key alone": keys(index=f"s3://{quote(IN_CONFIG, safe='')}@{BUCKET}/index"),
    "corpus": keys(corpus={"uri": f"s3://key:{IN_CONFIG}@{BUCKET}/corpus"}),
    "model": keys(model={"path": f"s3://key:{IN_CONFIG}@{BUCKET}/model"}),
    "presigned corpus": keys(corpus={"uri": f"https://{BUCKET}.s3.amazonaws.com/corpus.jsonl?{SIGNED}"}),
    "presigned corpus, as s3": keys(corpus={"uri": f"s3://{BUCKET}/corpus.jsonl?{SIGNED}"}),
    "presigned model": keys(model={"path": f"https://{BUCKET}.s3.amazonaws.com/model?{SIGNED}"}),
    "presigned in the old way": keys(index=f"s3://{BUCKET}/x?AWSAccessKeyId=k&Signature={IN_CONFIG}"),
}
WORDS = {
    "override": f"storage.secret_key={IN_CONFIG}",
    "override of the endpoint": f"storage.endpoint=https://key:{IN_CONFIG}@host",
    "override that is not YAML": f"storage.secret_key=[{IN_CONFIG}",
    "override below a value": f"index.secret_key={IN_CONFIG}",
    "override without a key": f"={IN_CONFIG}",
    "an option that is none": f"--secret-key={IN_CONFIG}",
}
TEXTS = {
    "an open quote": f"storage:\n  secret_key: '{IN_CONFIG}\n",
    "two colons": f"storage:\n  secret_key: {IN_CONFIG}: x\n",
    "a tab": f"storage:\n\tsecret_key: {IN_CONFIG}\n",
}


def refused(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> None:
    code, out, err = run(capsys, "check", "-c", str(path), "--json", *words)
    assert code == 2 and err.startswith("lorif: error: ") and len(err) > 40
    assert hits(out + err) == []


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config over a store where nothing listens: it must be refused before anything is asked there."""
    monkeypatch.setenv("LORIF_DEBUG", "1")
    return s3_config("http://127.0.0.1:9", INDEX, "secrets-corpus").model_dump(exclude_unset=True)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_secret_in_the_config_is_refused_and_not_repeated(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MISTAKES[case](raw)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path / "config.yaml")


@pytest.mark.parametrize("case", WORDS)
def test_a_secret_on_the_command_line_is_not_repeated(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path / "config.yaml", WORDS[case])


@pytest.mark.parametrize("case", TEXTS)
def test_a_config_that_cannot_be_parsed_is_not_repeated(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"index: ./index\n{TEXTS[case]}")
    refused(capsys, tmp_path / "config.yaml")


def test_an_endpoint_in_the_environment_is_refused_too(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://key:{IN_CONFIG}@host")
    del raw["storage"]["endpoint"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path / "config.yaml")


# ---- in exceptions ----

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


# ---- no pickle ----

ENDINGS = {".lance", ".manifest", ".txn", ".json"}
BASE64_OF_PICKLES = ("gAI", "gAM", "gAQ", "gAU")  # b"\x80" and the protocol, 2 to 5


def is_pickle(content: bytes) -> bool:
    """Whether it reads as opcodes up to a STOP, of any protocol, or is a zip, as torch saves its pickles in."""
    try:
        return [opcode.name for opcode, _, _ in pickletools.genops(content)][-1] == "STOP"
    except ValueError:
        return content.startswith((b"PK\x03\x04", b"\x80"))


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column is text or numbers, so that no bytes of an object can be in it."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.types.is_floating(kind.value_type)
    known = pa.types
    tests = (known.is_string, known.is_integer, known.is_floating, known.is_timestamp, known.is_boolean)
    return any(test(kind) for test in tests)


def check_without_pickle(files: dict[str, bytes], tables: Tables) -> None:
    """Every file has an ending that is known and is no pickle; every column is plain, and no text is a pickle."""
    assert {Path(name).suffix for name in files} <= ENDINGS
    assert [name for name, content in files.items() if is_pickle(content)] == []
    for name, content in files.items():
        if name.endswith(".json"):
            json.loads(content)
    for name in TABLES:
        table = tables.read(name)
        assert [field.name for field in table.schema if not is_plain(field.type)] == []
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        values = {value for text in texts for value in table.column(text).to_pylist() if value is not None}
        assert [value for value in values if value.startswith(BASE64_OF_PICKLES)] == []


def test_no_pickle_in_an_index_in_an_object_store(runs: Runs, s3_place: MotoServer) -> None:
    check_without_pickle(
        runs.evidence.found["index"], Tables(f"s3://{BUCKET}/{INDEX}", StorageConfig(**s3_place.storage()))
    )


def test_no_pickle_in_a_local_index(built: Config) -> None:
    files = {str(path): path.read_bytes() for path in Path(built.index).rglob("*") if path.is_file()}
    assert len(files) > 10
    check_without_pickle(files, Tables(built.index, StorageConfig()))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_seen(protocol: int, tmp_path: Path) -> None:
    assert is_pickle(pickle.dumps({"weights": [1.5, LorifError("x")]}, protocol))
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    assert is_pickle((tmp_path / "x.pt").read_bytes())
    assert not is_plain(pa.binary()) and not is_plain(pa.list_(pa.uint8())) and is_plain(pa.list_(pa.float16(), 3))
