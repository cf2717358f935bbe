"""Invariant: nothing that a command writes, logs, prints or records contains a credential of the environment or of
a profile; and no object of an index is a pickle.
"""

import logging
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

import lorif_core as lc
from flows.build import build
from lorif_core.config import Config, StorageConfig
from lorif_core.errors import LorifError
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.block_answers import Attribution
from lorif_core.search.queries import Query
from lorif_core.tables.datasets import Tables
from tasks.demo.object_store import MotoServer
from tasks.environment import environment
from tests.integration.evidence import RecordedCommands
from tests.integration.planted import (
    ENVIRONMENT_CREDENTIALS,
    MARK,
    PROFILE,
    PROFILE_CREDENTIALS,
    KeyRecordingProxy,
    active_fault,
    contains,
    quoting_fault,
    secrets_in,
)
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config
from tests.integration.security.test_no_pickle import check_without_pickle
from tests.patience import patience

SHARDS = 4
TASKS = 3 + 5 + 3 + 1 + 7  # of the refused build, the complete build, attribution, the library's build, the update
TABLES = ("factors", "curvature", "generations", "skipped", "removed")
INDEX = "secrets-index"
REFUSED = "secrets-index-refused"
ANSWERS = "secrets-answers"


@pytest.fixture(scope="module")
def proxy(s3_server: MotoServer) -> Iterator[KeyRecordingProxy]:
    put_shards(s3_server, "secrets-corpus", range(SHARDS))
    with KeyRecordingProxy(s3_server.url) as listening:
        yield listening


@pytest.fixture(scope="module")
def runs(
    s3_server: MotoServer, proxy: KeyRecordingProxy, credentials: dict[str, str], prefect_server: None
) -> Iterator[RecordedCommands]:
    """A build whose second receipt the store refuses, a complete one, later commands, and everything they left."""
    folder = Path(tempfile.mkdtemp(prefix="ls"))
    config = s3_config(proxy.url, INDEX, "secrets-corpus", compute={"workers": 1}, curvature={"kind": "none"})
    commands = RecordedCommands(config, credentials, folder)
    complete_build = commands.start("build", "-c", commands.config)
    try:
        run_refused_build(commands, s3_server)
        assert commands.finish("build", complete_build) == 0, commands.output("build")
        assert proxy.keys == {ENVIRONMENT_CREDENTIALS["AWS_ACCESS_KEY_ID"]}
        run_changes(commands, s3_server, proxy)
        run_attribution(commands, proxy)
        with environment(credentials):
            run_refused_flow(config, proxy)
            answer_locally(config, str(folder / "answers"))
        collect(commands, s3_server)
        yield commands
    finally:
        if complete_build.poll() is None:
            complete_build.kill()
        shutil.rmtree(folder, ignore_errors=True)


def run_refused_build(commands: RecordedCommands, server: MotoServer) -> None:
    """Run a build with the credentials of the profile; the error code is unknown to us, so its text is shown."""
    receipts: list[str] = []

    def refuse_the_second_receipt(request: str) -> None:
        if request.startswith("PUT") and "/receipts/" in request:
            receipts.append(request)
            if len(receipts) == 2:
                proxy.fault = quoting_fault("OddRefusal", PROFILE)

    with KeyRecordingProxy(server.url) as proxy:
        proxy.watch = refuse_the_second_receipt
        words = [f"index=s3://{BUCKET}/{REFUSED}", f"storage.endpoint={proxy.url}", f"storage.profile={PROFILE}"]
        code = commands.finish("refused build", commands.start("build", "-c", commands.config, *words))
        output = commands.output("refused build")
        assert code == 1 and proxy.injected > 0 and MARK in output, output
        assert proxy.keys == {PROFILE_CREDENTIALS["aws_access_key_id"]}


def run_changes(commands: RecordedCommands, server: MotoServer, proxy: KeyRecordingProxy) -> None:
    """Run an update, then a removal of its new rows, with the credentials of the environment."""
    put_shards(server, "secrets-corpus", range(SHARDS, SHARDS + 1))
    storage = [f"storage.{key}={value}" for key, value in {**server.storage(), "endpoint": proxy.url}.items()]
    arguments = {
        "update": ["-c", commands.config],
        "remove": [f"s3://{BUCKET}/{INDEX}", "--where", f"uri LIKE '%{SHARDS:03d}.jsonl' AND row < 2", *storage],
    }
    for name, words in arguments.items():
        assert commands.finish(name, commands.start(name, *words)) == 0, commands.output(name)
    assert proxy.keys == {ENVIRONMENT_CREDENTIALS["AWS_ACCESS_KEY_ID"]}


def run_attribution(commands: RecordedCommands, proxy: KeyRecordingProxy) -> None:
    """Run an attribution into the object store, with the credentials of the profile."""
    queries = commands.folder / "queries.jsonl"
    queries.write_text('{"text": "the cat sees it"}\n')
    proxy.keys.clear()
    arguments = ["--queries", str(queries), "--out", f"s3://{BUCKET}/{ANSWERS}", f"storage.profile={PROFILE}"]
    code = commands.finish("attribute", commands.start("attribute", "-c", commands.config, *arguments))
    assert code == 0, commands.output("attribute")
    assert proxy.keys == {PROFILE_CREDENTIALS["aws_access_key_id"]}


def run_refused_flow(config: Config, proxy: KeyRecordingProxy) -> None:
    """Run the flow without the command line, which would keep tracebacks of our errors out of Prefect's logs."""
    storage = config.storage.model_copy(update={"profile": PROFILE})
    with (
        unfiltered_logs(),
        active_fault(proxy, quoting_fault("OddRefusal", PROFILE)),
        pytest.raises(LorifError, match=MARK),
    ):
        build(config.model_copy(update={"storage": storage}))


@contextmanager
def unfiltered_logs() -> Iterator[None]:
    """Remove the log filters of the command line, which an earlier test may have added, for the block."""
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")]
    filters = [logger.filters[:] for logger in loggers]
    for logger in loggers:
        logger.filters.clear()
    try:
        yield
    finally:
        for logger, former in zip(loggers, filters, strict=True):
            logger.filters[:] = former


def answer_locally(config: Config, out: str) -> None:
    index = lc.open_index(config.index, config.storage)
    query = Query("q", text="the cat sees it")
    (top,) = index.top_k([{"text": query.text}], 5, model=config.model)
    write_answers(out, index.store, index.generation, [Attribution(query, 1.0, top)], "Local answers")


def collect(commands: RecordedCommands, server: MotoServer) -> None:
    """Collect everything that the commands could have written, and also the decoded rows of tables."""
    evidence = commands.evidence
    evidence.add_objects("index", server, f"{INDEX}/")
    evidence.add_objects("index", server, f"{REFUSED}/")
    evidence.add_objects("receipts", server, f"{REFUSED}/_lorif/receipts/")
    evidence.add_objects("answers", server, f"{ANSWERS}/")
    evidence.add_folder("local answers", commands.folder / "answers")
    tables = Tables(f"s3://{BUCKET}/{INDEX}", StorageConfig(**server.storage()))
    for name in TABLES:
        evidence.add("index, decoded", name, repr(tables.read(name).to_pylist()))
    scores = pa.BufferReader(evidence.contents["answers"][f"{ANSWERS}/scores.parquet"])
    evidence.add("answers, decoded", "scores", repr(pq.read_table(scores).to_pylist()))
    evidence.add_folder("ray", commands.folder / "ray")
    for name in ("cache", "prefect", "tmp"):
        evidence.add_folder("node", commands.folder / name)
    path = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2]
    wait_for_prefect(path)
    evidence.add_database(path)


def wait_for_prefect(path: str) -> None:
    """Wait until Prefect has written task runs and logs, which takes some seconds."""
    ended = (
        "SELECT count(*) FROM task_run JOIN flow_run ON flow_run.id = task_run.flow_run_id "
        f"WHERE flow_run.parameters LIKE '%{INDEX}%' AND task_run.state_type IN ('COMPLETED', 'FAILED')"
    )
    logged = f"SELECT count(*) FROM log WHERE message LIKE '%{MARK}%'"
    deadline = time.monotonic() + patience(60)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        for count, query in ((TASKS, ended), (1, logged)):
            while database.execute(query).fetchone()[0] < count:
                assert time.monotonic() < deadline, f"Prefect has not written: {query}"
                time.sleep(0.5)


CONTROLS = {
    "output": (10, MARK),
    "receipts": (1, f".jsonl[0:{ROWS_PER_SHARD}]"),
    "index": (20, BUCKET),
    "index, decoded": (len(TABLES), BUCKET),
    "answers": (3, BUCKET),
    "answers, decoded": (1, f".jsonl[0:{ROWS_PER_SHARD}]"),
    "local answers": (3, BUCKET),
    "ray": (50, "RoleHost"),
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
def test_no_place_shows_a_secret(place: str, runs: RecordedCommands) -> None:
    count, control = CONTROLS[place]
    contents = runs.evidence.contents[place]
    assert len(contents) >= count
    assert any(contains(content, control) for content in contents.values()), "the control text must be found"
    assert {name: secrets for name, content in contents.items() if (secrets := secrets_in(content))} == {}


def test_every_place_is_searched(runs: RecordedCommands) -> None:
    assert set(runs.evidence.contents) == set(CONTROLS)


def test_an_index_in_an_object_store_has_no_pickle(runs: RecordedCommands, s3_server: MotoServer) -> None:
    tables = Tables(f"s3://{BUCKET}/{INDEX}", StorageConfig(**s3_server.storage()))
    check_without_pickle(runs.evidence.contents["index"], tables, TABLES)
