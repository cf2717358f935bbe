"""The LoRIF library, which does not depend on Ray or Prefect.

import lorif_core as lc
index = lc.open_index("s3://bucket/indexes/my-model")
ids, scores = index.scores(["a query"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorif_core.search.index import Index, open_index

__all__ = ["Index", "open_index"]


def __getattr__(name: str) -> Any:
    """Import the index on first use, so that the mathematics modules also work without Lance."""
    if name in __all__:
        from lorif_core.search import index

        return getattr(index, name)
    raise AttributeError(f"module 'lorif_core' has no attribute {name!r}")
