"""LoRIF as plain library code, in the order of the data flow; knows neither Ray nor Prefect.

import lorif_core as lc
index = lc.open_index("s3://bucket/indexes/my-model")
ids, scores = index.scores(["a query"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorif_core.search.index import Index, open_index

__all__ = ["Index", "open_index"]


def __getattr__(name: str) -> Any:
    """Import the reader on first use: the mathematics modules also run where Lance is not installed."""
    if name in __all__:
        from lorif_core.search import index

        return getattr(index, name)
    raise AttributeError(f"module 'lorif_core' has no attribute {name!r}")
