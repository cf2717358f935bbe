"""A program that runs inside the container of the Prefect worker.

`python -m tests.infra.cluster_case fill` uploads a model and a corpus to the store and prints a CONFIG.
`python -m tests.infra.cluster_case look` prints the resources of the driver's node, and the nodes of actors.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from lorif_core.config import ComputeConfig
from tasks.cluster import cluster
from tasks.workers.start import start

BUCKET = "lorif"
ENDPOINT = "http://s3:8333"


def fill() -> dict[str, Any]:
    """Upload a tiny model and twelve small shards; returns the CONFIG of an index over them."""
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


class NodeRole:
    """A role that reports the node of its worker."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def node(self) -> tuple[str, int]:
        """The id of the node, and the number of cores that the worker may use."""
        return ray.get_runtime_context().get_node_id(), self._threads


def look() -> dict[str, Any]:
    """Cores of the driver's node and of all nodes, and the nodes of workers that do and do not reserve cores."""
    with cluster(ComputeConfig(ray="auto")) as resources:
        driver_node = ray.get_runtime_context().get_node_id()
        cores = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
        hosts = [start(NodeRole, resources), start(NodeRole, resources, with_model=True, shares_cores=True)]
        nodes = ray.get([host.call("node") for host in hosts])
        return {
            "driver": cores[driver_node],
            "all": sorted(cores.values()),
            "workers": [resources.workers, resources.cpus_per_worker],
            "beside driver": [node == driver_node for node, _ in nodes],
            "cores of their nodes": [cores[node] for node, _ in nodes],
            "threads": [threads for _, threads in nodes],
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"fill": fill, "look": look}[sys.argv[1]]()) + "\n")
