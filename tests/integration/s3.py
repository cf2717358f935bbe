"""Inputs of builds on an object store: a bucket with a tiny model and a corpus of small shards, and configs."""

import json
from pathlib import Path
from typing import Any

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from tasks.demo.object_store import MotoServer, upload_folder
from tests.conftest import WORDS
from tests.servers.swift import SwiftServer

BUCKET = "lorif-tests"
ROWS_PER_SHARD = 8

Server = MotoServer | SwiftServer


def fill_bucket(server: Server, model_folder: Path, sizes: tuple[int, ...]) -> None:
    """Create the bucket, and upload the model and one corpus for each number of shards."""
    server.make_bucket(BUCKET)
    upload_folder(server, model_folder, BUCKET, "model")
    for shards in sizes:
        put_shards(server, f"corpus-{shards}", range(shards))


def put_shards(server: Server, folder: str, numbers: range) -> None:
    """Upload small files with different texts; each is one shard."""
    for number in numbers:
        server.client().put_object(Bucket=BUCKET, Key=f"{folder}/{number:03d}.jsonl", Body=shard_file(number))


def shard_file(number: int) -> bytes:
    """The content of a small file whose texts differ from those of all other files."""
    texts = [" ".join(WORDS[(number * 7 + row * k) % 14] for k in range(2, 7)) for row in range(ROWS_PER_SHARD)]
    rows = [json.dumps({"id": f"{number}-{row}", "text": text}) for row, text in enumerate(texts)]
    return "\n".join([*rows, ""]).encode()


def s3_config(endpoint: str, index: str, folder: str, **sections: Any) -> Config:
    """The config of a small build with all inputs and the index in the bucket."""
    raw: dict[str, Any] = {
        "index": f"s3://{BUCKET}/{index}",
        "model": {"path": f"s3://{BUCKET}/model"},
        "corpus": {"uri": f"s3://{BUCKET}/{folder}", "id": "id", "max_length": 64},
        "projection": {"kind": "random", "factor": 4},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury", "rank": 8, "power_iterations": 1},
        "compute": {"workers": 1, "tokens_per_batch": 2048},
        "storage": {"endpoint": endpoint, "region": "us-east-1", "allow_http": True},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return parse_config(raw)
