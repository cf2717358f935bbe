"""The Ray that the work runs on: a private one for this process, or a cluster that must be there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from lorif_core.config import ComputeConfig
from lorif_core.errors import LorifError

log = logging.getLogger(__name__)

_CPUS_PER_WORKER = 4  # more threads than that gain little on one model; more workers cost a model each


@dataclass(frozen=True, slots=True)
class Resources:
    """How many workers there are, and what each of them holds."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float


@contextmanager
def cluster(compute: ComputeConfig) -> Iterator[Resources]:
    """Attach to Ray for the length of the block.

    `local` starts a private one-machine Ray; anything else attaches to a running cluster. A Ray that this
    process is already connected to is used as it is and left running.

    Raises:
        LorifError: there is no cluster at the address.
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
            f"no Ray cluster answers at compute.ray = {address!r}: {' '.join(str(error).split())[:200]}; start "
            f"one, or set compute.ray=local"
        ) from None


def _resources(compute: ComputeConfig) -> Resources:
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 1)), total.get("GPU", 0.0)
    gpus_each = (1.0 if gpus else 0.0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
    if compute.workers != "auto":
        workers = compute.workers
    else:
        workers = int(gpus // gpus_each) if gpus_each else max(1, cpus // _CPUS_PER_WORKER)
    if workers * gpus_each > gpus:
        raise LorifError(
            f"compute asks for {workers} workers with {gpus_each:g} GPUs each, but the Ray cluster has {gpus:g}"
        )
    workers = max(1, min(workers, cpus))
    return Resources(workers, max(1, cpus // workers), gpus_each)
