"""The Ray cluster that does the work: a private one of this process, or an existing one."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import ray
from ray.exceptions import GetTimeoutError

from lorif_core.config import ComputeConfig
from lorif_core.errors import UserError
from tasks.memory import memory_errors, scan_settings
from tasks.ray_start import attach_to_ray, start_private_ray
from tasks.workers.host import end_idle_hosts

log = logging.getLogger(__name__)

_GPU_ANSWER_SECONDS = 60.0
_WEIGHT_SHARE = 0.5  # of the memory of a worker's GPUs
_CPUS_PER_WORKER = 4  # more threads gain little on one model, and each further worker needs a model of its own


@dataclass(frozen=True, slots=True)
class Resources:
    """The number of requested workers, the resources of each, and how many fit on the current nodes."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    fit: int


@contextmanager
def cluster(compute: ComputeConfig, weights: Callable[[], int] | None = None) -> Iterator[Resources]:
    """Connect to Ray for the length of the block.

    `local` starts a private Ray on this machine; any other value is the address of a running cluster. A Ray that
    this process is already connected to is used as it is and stays connected.

    Args:
        compute: the section of the config.
        weights: returns the bytes of the weights that a worker loads; it is called if there are GPUs and
            `gpus_per_worker` is `auto`. Without it a worker gets one GPU.

    Raises:
        LorifError: no cluster answers at the address.
        UserError: not a single requested worker fits on any node. Fewer workers than requested are not an error: a
            node may have been lost, or may not have joined yet.
        MemoryExhaustedError: memory of this process ran out in the block.
    """
    connected = ray.is_initialized()
    try:
        if not connected:
            start_private_ray() if compute.ray == "local" else attach_to_ray(compute.ray)
        with memory_errors(scan_settings(compute)):
            yield _resources(compute, weights)
    finally:
        if not connected:
            end_idle_hosts()
            ray.shutdown()


def gpus_for(weight_bytes: int, gpu_memory_bytes: int) -> int:
    """GPUs that a model needs: its weights may take half of their memory, for a batch needs much of the rest."""
    return max(1, math.ceil(weight_bytes / (_WEIGHT_SHARE * gpu_memory_bytes)))


def _resources(compute: ComputeConfig, weights: Callable[[], int] | None) -> Resources:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus_each = compute.gpus_per_worker
    if gpus_each == "auto":
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        gpus_each = (1.0 if weights is None else _gpus_each(weights())) if gpus else 0.0
    if compute.workers == "auto":
        cpus_each = _cores_each(nodes)
        workers = max(1, _slots(nodes, cpus_each, gpus_each))
    else:
        workers = compute.workers
        sizes = range(int(max(node.get("CPU", 0) for node in nodes)), 0, -1)
        cpus_each = next((size for size in sizes if _slots(nodes, size, gpus_each) >= workers), 1)
    fit = _slots(nodes, cpus_each, gpus_each) if cpus_each else 0
    if fit < workers:
        message = (
            f"compute requests {workers} workers with {gpus_each:g} GPUs each, but the nodes of this Ray have "
            f"{', '.join(_size(node) for node in nodes)}, which is room for {fit}"
        )
        if fit == 0:
            raise UserError(f"{message}; lower compute.workers or compute.gpus_per_worker")
        log.warning("%s", message)
    return Resources(workers, cpus_each, gpus_each, fit)


def _gpus_each(weight_bytes: int) -> float:
    """GPUs of a worker by the memory of one of them; all are taken for equal."""
    try:
        return float(gpus_for(weight_bytes, _memory_of_a_gpu(ray.get_runtime_context().gcs_address)))
    except GetTimeoutError:
        log.warning("no GPU is free to ask for its memory; each worker gets one, see compute.gpus_per_worker")
        return 1.0


@cache
def _memory_of_a_gpu(address: str) -> int:
    """Bytes of a GPU of the cluster at an address; asked once, for soon workers hold all GPUs."""
    reference = _gpu_memory.remote()
    try:
        return int(ray.get(reference, timeout=_GPU_ANSWER_SECONDS))
    except GetTimeoutError:
        ray.cancel(reference)
        raise


@ray.remote(num_gpus=0.01, num_cpus=0, max_retries=0)
def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def roomiest_node() -> str:
    """Id of the current node with the most cores, for actors that reserve none."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return max(alive, key=lambda node: node["Resources"].get("CPU", 0))["NodeID"]


def _cores_each(nodes: Sequence[dict[str, float]]) -> int:
    """Default cores of a worker: at most as many as the smallest node with cores has.

    A node without cores belongs to a driver or to Ray itself, and takes no work.
    """
    return min([_CPUS_PER_WORKER, *(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)])


def _slots(nodes: Sequence[dict[str, float]], cpus_each: int, gpus_each: float) -> int:
    """The number of workers that fit; a worker must fit on a single node, or it would wait forever."""
    return sum(
        int(min(node.get("CPU", 0) // cpus_each, node.get("GPU", 0) // gpus_each if gpus_each else math.inf))
        for node in nodes
    )


def _size(node: dict[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"
