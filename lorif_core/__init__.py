"""The LoRIF library, which does not depend on Ray or Prefect.

import lorif_core as lc
index = lc.open_index("s3://bucket/indexes/my-model")
answer = index.query("What the model said")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorif_core.answer import Answer
    from lorif_core.library import Index, build, open_index
    from lorif_core.recording.callback import LorifCallback
    from lorif_core.recording.record import record

__all__ = ["Answer", "Index", "LorifCallback", "build", "open_index", "record"]


def __getattr__(name: str) -> Any:
    """Import the library on first use, so that the mathematics modules also work without Lance."""
    if name == "record":
        from lorif_core.recording.record import record

        return record
    if name == "LorifCallback":
        from lorif_core.recording.callback import LorifCallback

        return LorifCallback
    if name in __all__:
        from lorif_core import library

        return getattr(library, name)
    raise AttributeError(f"module 'lorif_core' has no attribute {name!r}")
