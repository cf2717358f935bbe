"""How a worker is started: its cores, its GPUs, and where it may run."""

from collections.abc import Callable
from typing import Any

from lorif_core.config import Config
from tasks.cluster import Resources, roomiest_node
from tasks.workers.host import Host, Reservation, find_host


def start(
    role: Callable[..., Any],
    resources: Resources,
    *arguments: Any,
    with_model: bool = False,
    shares_cores: bool = False,
) -> Host:
    """Start a worker with a role; the last argument of the role is the number of cores that it may use.

    A worker that has several GPUs spreads its model over all of them, unless `model.device_map` says otherwise.

    Args:
        role: class of the role.
        resources: resources of the cluster.
        arguments: arguments of the role.
        with_model: the role loads the model and reserves its GPUs; scans of codes need no GPU.
        shares_cores: the worker works only while others wait, so it reserves no cores.
    """
    cpus = 0 if shares_cores else resources.cpus_per_worker
    gpus = resources.gpus_per_worker if with_model else 0
    # without reservations Ray could place it on any node, even the driver's; soft affinity does not prevent that
    node = None if cpus or gpus else roomiest_node()
    host = find_host(Reservation(cpus, gpus, node))
    if gpus > 1:
        arguments = tuple(_over_all_gpus(argument) for argument in arguments)
    host.take(role, (*arguments, resources.cpus_per_worker))
    return host


def _over_all_gpus(argument: Any) -> Any:
    if not isinstance(argument, Config) or argument.model.device_map is not None:
        return argument
    return argument.model_copy(update={"model": argument.model.model_copy(update={"device_map": "auto"})})
