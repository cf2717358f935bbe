"""How much memory the codes of an index may use by default."""

from lorif_core.free_memory import free_memory

_SHARE = 0.25


def default_memory_gb() -> float:
    """A quarter of the memory that is free on this machine, or in this container if that is less; GiB."""
    return _SHARE * free_memory() / 2**30
