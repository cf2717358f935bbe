"""Invariant: an unreadable shard does not keep out rows of other shards, and is never left out silently."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect import flow

from lorif_core.config import Config
from lorif_core.errors import CorpusChangedError, IncompleteBuildError
from lorif_core.lifecycle.plan import make_plan
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tasks.indexing import index_shards
from tasks.model_workers import ModelWorkers
from tests.integration.lorif import run
from tests.integration.rows import stored_rows
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


def lines(name: str) -> bytes:
    rows = [{"id": f"{name}-{row}", "text": f"the cat sees {name} and {row}"} for row in range(ROWS_PER_SHARD)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(name: str) -> bytes:
    sink = io.BytesIO()
    rows = [json.loads(line) for line in lines(name).splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


INTACT = {"z.jsonl.gz": gzip.compress(lines("z"), mtime=0), "y.parquet": parquet("y")}
TRUNCATED = {"z.jsonl.gz": INTACT["z.jsonl.gz"][:-20], "y.parquet": INTACT["y.parquet"][:-100]}


def put(server: MotoServer, folder: str, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        server.client().put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=body)


def write_config(config: Config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    return str(path)


def test_truncated_files_are_quarantined_and_the_others_are_indexed(
    s3_server: MotoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_shards(s3_server, "cut", range(3))
    put(s3_server, "cut", TRUNCATED)
    config = s3_config(s3_server.url, "quarantine", "cut")
    path = write_config(config, tmp_path)
    store = Store(config.index, config.storage)
    code, _, err = run(capsys, "build", "-c", path)
    assert code == 2 and err.strip().splitlines()[-1].startswith("lorif: error: 2 shards or files are quarantined")
    assert all(part in err for part in ("z.jsonl.gz", "y.parquet", "cut off", "--publish-incomplete"))
    assert len(stored_rows(config)) == 3 * ROWS_PER_SHARD and store.generations() == []

    code, out, _ = run(capsys, "build", "-c", path, "--publish-incomplete", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["rows"] == 3 * ROWS_PER_SHARD
    assert [entry["shard"] for entry in result["quarantined"]] == ["y.parquet", "z.jsonl.gz"]
    recorded = json.loads(store.latest().quarantined_json)
    assert [name for name, _ in recorded] == ["y.parquet", "z.jsonl.gz"] and "cut off" in recorded[0][1]

    put(s3_server, "cut", INTACT)
    code, out, _ = run(capsys, "build", "-c", path, "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["rows"] == 5 * ROWS_PER_SHARD and result["quarantined"] == []


def test_an_object_that_changes_between_listing_and_reading_is_quarantined(s3_server: MotoServer) -> None:
    put_shards(s3_server, "changing", range(3))
    config = s3_config(s3_server.url, "changing-index", "changing")
    plan = make_plan(config)
    put(s3_server, "changing", {"001.jsonl": lines("new")})

    @flow
    def index_only() -> None:
        with hold_lease(config.index, config.storage, "build") as lease, ModelWorkers(config) as workers:
            index_shards.fn(config, plan, lease, False, workers)

    with pytest.raises(IncompleteBuildError, match=r"001\.jsonl.*changed after it was listed") as caught:
        index_only()
    assert caught.value.exit_code == CorpusChangedError.exit_code == 2
    assert len(stored_rows(config)) == 2 * ROWS_PER_SHARD


def test_damage_that_appears_only_while_reading_is_quarantined(
    s3_server: MotoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Parquet file has an intact footer and damaged pages."""
    damaged = bytearray(INTACT["y.parquet"])
    damaged[4:200] = b"\xff" * 196
    put_shards(s3_server, "damaged", range(2))
    put(s3_server, "damaged", {"y.parquet": bytes(damaged)})
    config = s3_config(s3_server.url, "damaged-index", "damaged", corpus={"id": None})
    code, _, err = run(capsys, "build", "-c", write_config(config, tmp_path))
    assert code == 2 and "1 shards or files are quarantined" in err and "y.parquet" in err
    assert len(stored_rows(config)) == 2 * ROWS_PER_SHARD
