"""How an actor is started: its cores, its GPUs, and where it may run."""

from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tasks.cluster import Resources, roomiest_node


def start(
    actor_class: Any,
    resources: Resources,
    *arguments: Any,
    with_model: bool = False,
    shares_cores: bool = False,
) -> Any:
    """Start an actor; its last argument is the number of cores that it may use.

    Args:
        with_model: the actor loads the model and reserves its GPUs; scans of codes need no GPU.
        shares_cores: the actor works only while others wait, so it reserves no cores.
    """
    reserves_nothing = shares_cores and not (with_model and resources.gpus_per_worker)
    # without reservations Ray could place it on any node, even the driver's; soft affinity does not prevent that
    beside_workers = NodeAffinitySchedulingStrategy(roomiest_node(), soft=False) if reserves_nothing else "DEFAULT"
    placed = actor_class.options(
        max_restarts=0,  # `Workers` replaces an actor that dies and decides which item caused it
        max_task_retries=0,
        num_cpus=0 if shares_cores else resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker if with_model else 0,
        scheduling_strategy=beside_workers,
    )
    return placed.remote(*arguments, resources.cpus_per_worker)
