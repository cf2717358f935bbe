"""Run as a program: a build on a Ray of two nodes, one of which is removed without grace while it indexes.

`python -m tests.integration.two_nodes CONFIG` prints one line of JSON: rows, and shards finished before the loss.
"""

import json
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from lorif_core.config import Config, load_config
from tasks.environment import lock_local_ray

SHARDS_BEFORE_THE_LOSS = 6


def receipts(config: Config) -> int:
    """Shards that workers have finished."""
    from lorif_core.objects import Objects

    return len(Objects(config.index, config.storage).names("receipts"))


def main() -> None:
    """Build, and lose a node on the way."""
    config = load_config(sys.argv[1])
    place = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=place)
    second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    ray.init(address=cluster.address, log_to_driver=False)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
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
    alive = len([node for node in ray.nodes() if node["Alive"]])
    sys.stdout.write(json.dumps({"rows": generation.rows, "finished": lost[0], "alive": alive}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    lock_local_ray("local")
    main()
