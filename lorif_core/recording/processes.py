"""The processes of a distributed training: what they must agree on, by collectives that all of them enter."""

from typing import TypeVar

import torch
import torch.distributed as dist

from lorif_core.gradients.whitening import Covariances

Value = TypeVar("Value")


def process_number() -> int:
    """The number of this process among those of the training; 0 if it is alone."""
    return dist.get_rank() if _are_several() else 0


def process_count() -> int:
    """Number of processes of the training."""
    return dist.get_world_size() if _are_several() else 1


def from_first(value: Value) -> Value:
    """The value that process 0 has."""
    if not _are_several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def total(counts: list[int], device: torch.device) -> list[int]:
    """Sums over all processes."""
    if not _are_several():
        return counts
    tensor = torch.tensor(counts, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def add_up(covariances: Covariances, device: torch.device) -> Covariances:
    """The covariances over all processes."""
    if not _are_several():
        return covariances
    sums = {}
    for key in sorted(covariances.sums):
        matrix = covariances.sums[key].to(device).clone()
        dist.all_reduce(matrix)
        sums[key] = matrix
    tokens, examples = total([covariances.tokens, covariances.examples], device)
    return Covariances(sums, tokens, examples)


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
