"""The Ray that the work runs on: a private one for this process, or a cluster that must be there."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from lorif_core.config import ComputeConfig
from lorif_core.errors import LorifError, UserError
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

_CPUS_PER_WORKER = 4  # more threads than that gain little on one model; more workers cost a model each


@dataclass(frozen=True, slots=True)
class Resources:
    """How many workers are asked for, what each of them holds, and how many fit on the nodes there are now."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    fit: int


@contextmanager
def cluster(compute: ComputeConfig) -> Iterator[Resources]:
    """Attach to Ray for the length of the block.

    `local` starts a private one-machine Ray; anything else attaches to a running cluster. A Ray that this
    process is already connected to is used as it is and left running.

    Raises:
        LorifError: there is no cluster at the address.
        UserError: not even one of the workers asked for fits on any of its nodes. Fewer than asked for are no
            error: a node may have been lost, or may still be coming.
    """
    connected = ray.is_initialized()
    if not connected:
        _start_local() if compute.ray == "local" else _attach(compute.ray)
    try:
        yield _resources(compute)
    finally:
        if not connected:
            ray.shutdown()


def _start_local() -> None:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning("this private Ray also listens beyond loopback and has no token: set RAY_AUTH_MODE=token")
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )


def _attach(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LorifError(
            f"no Ray cluster answers at compute.ray = {address!r}: {one_line(error)}; start "
            f"one, or set compute.ray=local"
        ) from None


def _resources(compute: ComputeConfig) -> Resources:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpus_each = (1.0 if gpus else 0.0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
    if compute.workers == "auto":
        cpus_each = _cores_each(nodes)
        workers = max(1, _slots(nodes, cpus_each, gpus_each))
    else:
        workers = compute.workers
        sizes = range(int(max(node.get("CPU", 0) for node in nodes)), 0, -1)
        cpus_each = next((size for size in sizes if _slots(nodes, size, gpus_each) >= workers), 1)
    fit = _slots(nodes, cpus_each, gpus_each) if cpus_each else 0
    if fit < workers:
        told = (
            f"compute asks for {workers} workers with {gpus_each:g} GPUs each, but the nodes of this Ray have "
            f"{', '.join(_size(node) for node in nodes)}, room for {fit}"
        )
        if fit == 0:
            raise UserError(f"{told}; lower compute.workers or compute.gpus_per_worker")
        log.warning("%s", told)
    return Resources(workers, cpus_each, gpus_each, fit)


def roomiest_node() -> str:
    """Id of the node with most cores, of those that are there now: for what reserves none of them."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return max(alive, key=lambda node: node["Resources"].get("CPU", 0))["NodeID"]


def _cores_each(nodes: Sequence[dict[str, float]]) -> int:
    """Cores of a worker where nothing else is said: as many as the smallest node has, of those that have any.

    A node without cores is a driver's or Ray's own, and takes no work.
    """
    return min([_CPUS_PER_WORKER, *(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)])


def _slots(nodes: Sequence[dict[str, float]], cpus_each: int, gpus_each: float) -> int:
    """Workers that fit: one must lie on one node, or it would wait forever."""
    return sum(
        int(min(node.get("CPU", 0) // cpus_each, node.get("GPU", 0) // gpus_each if gpus_each else math.inf))
        for node in nodes
    )


def _size(node: dict[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"
