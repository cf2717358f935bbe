"""The folder on this node for what can be fetched or computed again."""

import os
from pathlib import Path

from lorif_core.errors import UserError


def cache_folder() -> Path:
    """`LORIF_CACHE`, or a folder in the home folder of this user.

    Raises:
        UserError: neither exists.
    """
    try:
        return Path(os.environ.get("LORIF_CACHE") or "~/.cache/lorif").expanduser()
    except RuntimeError:  # the user of a container may have no home folder
        raise UserError("this user has no home folder for a cache; set LORIF_CACHE to a folder") from None
