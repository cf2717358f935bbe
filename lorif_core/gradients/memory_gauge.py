"""Measures the memory that a piece of work takes, next to the memory that is free."""

import os
from collections.abc import Iterable
from typing import Protocol

import psutil
import torch

from lorif_core.free_memory import free_memory, peak_memory, reset_peak

_GPU_SHARE = 0.9  # of the free memory, because the allocator loses some to fragments
_HOST_SHARE = 0.5  # the kernel kills without a word, and other threads of a worker need memory too


class MemoryGauge(Protocol):
    """Measures one piece of work after the other.

    `most_tokens` is the number of tokens from which larger batches are no faster.
    """

    most_tokens: int

    def start(self) -> None:
        """Before the work."""

    def headroom(self) -> float:
        """After the work: how many times the memory that it took was free for it; infinite if unknown."""


def memory_gauge(devices: Iterable[torch.device]) -> MemoryGauge:
    """The gauge of the devices that have the layers of a model."""
    gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
    return GpuGauge(gpus) if gpus else HostGauge()


class GpuGauge:
    """Memory of GPUs, by torch's allocator."""

    most_tokens = 65_536

    def __init__(self, devices: list[torch.device]) -> None:
        self._devices = devices
        self._before: list[tuple[int, float]] = []

    def start(self) -> None:
        """See `MemoryGauge`."""
        self._before = [(torch.cuda.memory_allocated(device), _free_on(device)) for device in self._devices]
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)

    def headroom(self) -> float:
        """See `MemoryGauge`; of the device that has the least."""
        peaks = [torch.cuda.max_memory_allocated(device) for device in self._devices]
        return min(
            _GPU_SHARE * free / max(1, peak - allocated)
            for peak, (allocated, free) in zip(peaks, self._before, strict=True)
        )


def _free_on(device: torch.device) -> float:
    """Bytes that torch can still allocate on a GPU: those that nobody has, and those that it holds in reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + reserve)


class HostGauge:
    """Resident memory of this process, by the kernel's record of its peak; other workers share what is free."""

    most_tokens = 1024  # on a CPU more are no faster, have more padding, and take more memory

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = 0
        self._free = 0.0

    def start(self) -> None:
        """See `MemoryGauge`."""
        workers = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
        self._free = free_memory() / workers
        self._before = self._process.memory_info().rss
        if not reset_peak():
            self._free = float("inf")

    def headroom(self) -> float:
        """See `MemoryGauge`."""
        return _HOST_SHARE * self._free / max(1, (peak_memory() or 0) - self._before)
