"""A program that builds on a Ray of two nodes and kills one of them while it indexes.

`python -m tests.integration.two_nodes CONFIG` prints one line of JSON: rows, and shards finished before the kill.
It runs in its own process because a process can have only one Ray; the environment has the token of that Ray.
"""

import json
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from lorif_core.config import Config
from lorif_core.config_file import load_config
from tests.patience import patience

LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address that other machines can reach
SHARDS_BEFORE_THE_LOSS = 6


def receipts(config: Config) -> int:
    """The number of shards that workers have finished."""
    from lorif_core.storage.objects import Objects

    return len(Objects(config.index, config.storage).names("receipts"))


def alive() -> int:
    """The number of nodes that Ray considers alive."""
    return len([node for node in ray.nodes() if node["Alive"]])


def main() -> None:
    """Build an index and lose a node during the build."""
    config = load_config(sys.argv[1])
    place = {"num_cpus": 1, "node_ip_address": LOOPBACK, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=place)
    second = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    ray.init(address=cluster.address, log_to_driver=False)
    assert alive() == 2
    assert ray.get_runtime_context().get_node_id() != second.node_id, "the driver's own node must stay"
    lost: list[int] = []

    def lose_a_node() -> None:
        while (finished := receipts(config)) < SHARDS_BEFORE_THE_LOSS:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        lost.append(finished)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    from flows.build import build

    generation = build(config)
    thread.join()
    deadline = time.monotonic() + patience(60)
    while alive() > 1 and time.monotonic() < deadline:  # Ray waits for several missed heartbeats
        time.sleep(0.5)
    sys.stdout.write(json.dumps({"rows": generation.rows, "finished": lost[0], "alive": alive()}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
