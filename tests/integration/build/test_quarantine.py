"""Invariant: a shard that cannot be read keeps nobody else's rows out, and is never left out in silence."""

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
from lorif_core.storage.lease import hold
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tasks.indexing import index_shards
from tests.integration.rows import stored_rows
from tests.integration.s3 import BUCKET, ROWS_PER_SHARD, put_shards, s3_config
from tests.integration.lorif import run

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


def lines(name: str) -> bytes:
    rows = [{"id": f"{name}-{row}", "text": f"the cat sees {name} and {row}"} for row in range(ROWS_PER_SHARD)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(name: str) -> bytes:
    sink = io.BytesIO()
    rows = [json.loads(line) for line in lines(name).splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WHOLE = {"z.jsonl.gz": gzip.compress(lines("z"), mtime=0), "y.parquet": parquet("y")}
CUT = {"z.jsonl.gz": WHOLE["z.jsonl.gz"][:-20], "y.parquet": WHOLE["y.parquet"][:-100]}


def put(server: MotoServer, folder: str, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        server.client().put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=body)


def written(config: Config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    return str(path)


def test_truncated_files_are_quarantined_and_the_rest_goes_on(
    s3_place: MotoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_shards(s3_place, "cut", range(3))
    put(s3_place, "cut", CUT)
    config = s3_config(s3_place.url, "quarantine", "cut")
    path = written(config, tmp_path)
    store = Store(config.index, config.storage)
    code, _, err = run(capsys, "build", "-c", path)
    assert code == 2 and err.strip().splitlines()[-1].startswith("lorif: error: 2 shards or files are quarantined")
    assert all(part in err for part in ("z.jsonl.gz", "y.parquet", "cut off", "--publish-incomplete"))
    assert len(stored_rows(config)) == 3 * ROWS_PER_SHARD and store.generations() == []

    code, out, _ = run(capsys, "build", "-c", path, "--publish-incomplete", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["rows"] == 3 * ROWS_PER_SHARD
    assert [entry["shard"] for entry in told["quarantined"]] == ["y.parquet", "z.jsonl.gz"]
    recorded = json.loads(store.latest().quarantined_json)
    assert [name for name, _ in recorded] == ["y.parquet", "z.jsonl.gz"] and "cut off" in recorded[0][1]

    put(s3_place, "cut", WHOLE)
    code, out, _ = run(capsys, "build", "-c", path, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["rows"] == 5 * ROWS_PER_SHARD and told["quarantined"] == []


def test_an_object_that_changes_between_listing_and_reading_is_quarantined(s3_place: MotoServer) -> None:
    put_shards(s3_place, "changing", range(3))
    config = s3_config(s3_place.url, "changing-index", "changing")
    plan = make_plan(config)
    put(s3_place, "changing", {"001.jsonl": lines("new")})

    @flow
    def index_only() -> None:
        with hold(config.index, config.storage, "build") as lease:
            index_shards.fn(config, plan, lease, False)

    with pytest.raises(IncompleteBuildError, match=r"001\.jsonl.*changed after it was listed") as caught:
        index_only()
    assert caught.value.exit_code == CorpusChangedError.exit_code == 2
    assert len(stored_rows(config)) == 2 * ROWS_PER_SHARD


def test_damage_that_only_reading_finds_is_quarantined(
    s3_place: MotoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A parquet file whose footer is whole and whose pages are not."""
    spoilt = bytearray(WHOLE["y.parquet"])
    spoilt[4:200] = b"\xff" * 196
    put_shards(s3_place, "spoilt", range(2))
    put(s3_place, "spoilt", {"y.parquet": bytes(spoilt)})
    config = s3_config(s3_place.url, "spoilt-index", "spoilt", corpus={"id": None})
    code, _, err = run(capsys, "build", "-c", written(config, tmp_path))
    assert code == 2 and "1 shards or files are quarantined" in err and "y.parquet" in err
    assert len(stored_rows(config)) == 2 * ROWS_PER_SHARD
