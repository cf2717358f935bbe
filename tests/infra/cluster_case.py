"""Run as a program inside the Prefect worker's container: what is to be built, and where its driver stands.

`python -m tests.infra.cluster_case fill` puts a model and a corpus into the store and prints a CONFIG.
`python -m tests.infra.cluster_case look` prints what the node of a driver offers, and where actors are placed.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from lorif_core.config import ComputeConfig
from tasks.actors import start
from tasks.cluster import cluster

BUCKET = "lorif"
ENDPOINT = "http://s3:8333"


def fill() -> dict[str, Any]:
    """A tiny model and twelve small shards; the CONFIG of an index over them."""
    import boto3

    from tests.integration.s3 import shard_file
    from tests.models import gpt2, scaled
    from tests.tiny_tokenizer import VOCAB, byte_tokenizer

    client = boto3.client("s3", endpoint_url=ENDPOINT)
    client.create_bucket(Bucket=BUCKET)
    with tempfile.TemporaryDirectory() as folder:
        scaled(gpt2(vocab_size=VOCAB)).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        for file in Path(folder).iterdir():
            client.upload_file(str(file), BUCKET, f"models/tiny/{file.name}")
    for number in range(12):
        client.put_object(Bucket=BUCKET, Key=f"corpus/{number}.jsonl", Body=shard_file(number))
    return {
        "index": f"s3://{BUCKET}/indexes/tiny",
        "model": {"path": f"s3://{BUCKET}/models/tiny"},
        "corpus": {"uri": f"s3://{BUCKET}/corpus", "id": "id", "max_length": 64},
        "projection": {"kind": "random", "factor": 4},
        "curvature": {"kind": "woodbury", "rank": 8, "power_iterations": 1},
        "compute": {"ray": "auto", "tokens_per_batch": 2048},
    }


@ray.remote
class Where:
    """An actor that knows its node."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def node(self) -> tuple[str, int]:
        """The node's id, and the cores that the actor was told to use."""
        return ray.get_runtime_context().get_node_id(), self._threads


def look() -> dict[str, Any]:
    """Cores of the driver's node and of all; where actors with and without cores of their own stand."""
    with cluster(ComputeConfig(ray="auto")) as resources:
        mine = ray.get_runtime_context().get_node_id()
        cores = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
        actors = [start(Where, resources), start(Where, resources, with_model=True, shares_cores=True)]
        places = ray.get([actor.node.remote() for actor in actors])
        return {
            "driver": cores[mine],
            "all": sorted(cores.values()),
            "workers": [resources.workers, resources.cpus_per_worker],
            "beside driver": [place == mine for place, _ in places],
            "cores of their nodes": [cores[place] for place, _ in places],
            "threads": [threads for _, threads in places],
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"fill": fill, "look": look}[sys.argv[1]]()) + "\n")
