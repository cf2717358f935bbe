"""The settings that bound the memory of a step, named if memory runs out in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorif_core.config import ComputeConfig, Config
from lorif_core.errors import LorifError
from lorif_core.gradients.memory_gauge import HostGauge
from lorif_core.out_of_memory import MemorySetting, is_out_of_memory, memory_exhausted
from lorif_core.storage.faults import one_line

_KERNEL_COUNTERS = Path("/proc/vmstat")
_SHORTEST = 2  # tokens of an example, for the first has no loss


def model_settings(config: Config) -> tuple[MemorySetting, ...]:
    """The settings that bound the memory of a step that runs the model; the last resort are shorter examples."""
    compute, longest = config.compute, config.corpus.max_length
    size = HostGauge.most_tokens if compute.tokens_per_batch == "auto" else compute.tokens_per_batch
    examples = () if longest == "auto" else (MemorySetting("corpus.max_length", longest, _SHORTEST),)
    lowest = _SHORTEST if longest == "auto" else longest
    return MemorySetting("compute.tokens_per_batch", size, lowest), *scan_settings(compute), *examples


def scan_settings(compute: ComputeConfig) -> tuple[MemorySetting, ...]:
    """The settings that bound the memory of a step that reads rows."""
    return (MemorySetting("compute.memory_gb", compute.memory_gb),)


@contextmanager
def memory_errors(settings: Sequence[MemorySetting]) -> Iterator[None]:
    """Name the settings if memory of this process runs out in the block.

    Raises:
        MemoryExhaustedError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LorifError) or not is_out_of_memory(error):
            raise
        raise memory_exhausted("this process", one_line(error) or type(error).__name__, settings) from None


def kills_for_memory() -> int:
    """How many processes the kernel of this machine has killed because memory ran out; 0 if it does not tell."""
    if not _KERNEL_COUNTERS.exists():
        return 0
    counters = dict(line.split() for line in _KERNEL_COUNTERS.read_text().splitlines())
    return int(counters.get("oom_kill", 0))
