"""Invariant: a credential in the environment or in a profile is in nothing that any command writes, logs, prints
or records; and no object of an index is a pickle.
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
from tests.integration.evidence import Runs
from tests.integration.planted import (
    ENVIRONMENT,
    MARK,
    OF_PROFILE,
    PROFILE,
    Overhearing,
    hits,
    refusal,
    served,
    shows,
)
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config
from tests.integration.security.test_no_pickle import check_without_pickle

SHARDS = 4
TASKS = 3 + 5 + 3 + 1 + 7  # of the refused build, the one that ends, attribution, the library's build, the update
TABLES = ("factors", "curvature", "generations", "skipped", "removed")
INDEX = "secrets-index"
REFUSED = "secrets-index-refused"
ANSWERS = "secrets-answers"


@pytest.fixture(scope="module")
def proxy(s3_place: MotoServer) -> Iterator[Overhearing]:
    put_shards(s3_place, "secrets-corpus", range(SHARDS))
    with Overhearing(s3_place.url) as listening:
        yield listening


@pytest.fixture(scope="module")
def runs(
    s3_place: MotoServer, proxy: Overhearing, credentials: dict[str, str], prefect_server: None
) -> Iterator[Runs]:
    """A build that is refused at its second receipt, one that ends, what comes after it; and what they left."""
    folder = Path(tempfile.mkdtemp(prefix="ls"))
    config = s3_config(proxy.url, INDEX, "secrets-corpus", compute={"workers": 1}, curvature={"kind": "none"})
    made = Runs(config, credentials, folder)
    ending = made.start("build", "-c", made.config)
    try:
        refuse_a_build(made, s3_place)
        assert made.finish("build", ending) == 0, made.said("build")
        assert proxy.keys == {ENVIRONMENT["AWS_ACCESS_KEY_ID"]}
        change(made, s3_place, proxy)
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
        code = made.finish("refused build", made.start("build", "-c", made.config, *words))
        assert code == 1 and proxy.hit > 0 and MARK in made.said("refused build"), made.said("refused build")
        assert proxy.keys == {OF_PROFILE["aws_access_key_id"]}


def change(made: Runs, server: MotoServer, proxy: Overhearing) -> None:
    """An update, and a removal of what it brought in; with the credentials of the environment."""
    put_shards(server, "secrets-corpus", range(SHARDS, SHARDS + 1))
    storage = [f"storage.{key}={value}" for key, value in {**server.storage(), "endpoint": proxy.url}.items()]
    commands = {
        "update": ["-c", made.config],
        "remove": [f"s3://{BUCKET}/{INDEX}", "--where", f"uri LIKE '%{SHARDS:03d}.jsonl' AND row < 2", *storage],
    }
    for name, words in commands.items():
        assert made.finish(name, made.start(name, *words)) == 0, made.said(name)
    assert proxy.keys == {ENVIRONMENT["AWS_ACCESS_KEY_ID"]}


def attribute(made: Runs, proxy: Overhearing) -> None:
    """With the credentials of the profile, into the object store."""
    queries = made.folder / "queries.jsonl"
    queries.write_text('{"text": "the cat sees it"}\n')
    proxy.keys.clear()
    arguments = ["--queries", str(queries), "--out", f"s3://{BUCKET}/{ANSWERS}", f"storage.profile={PROFILE}"]
    assert made.finish("attribute", made.start("attribute", "-c", made.config, *arguments)) == 0, made.said(
        "attribute"
    )
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
    "output": (10, MARK),
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


def test_no_pickle_in_an_index_in_an_object_store(runs: Runs, s3_place: MotoServer) -> None:
    tables = Tables(f"s3://{BUCKET}/{INDEX}", StorageConfig(**s3_place.storage()))
    check_without_pickle(runs.evidence.found["index"], tables, TABLES)
