"""A part of a corpus: the files under a prefix, as events tell of them; all others as a generation has them."""

import os
import posixpath
from dataclasses import replace

from lorif_core.config import check_uri
from lorif_core.corpus.shards import Listing
from lorif_core.errors import UserError
from lorif_core.spec import parse_shard_key
from lorif_core.storage.filesystem import glob_root
from lorif_core.tables.inventory import Inventory


def names_under(corpus: str, prefix: str | None) -> str:
    """What the names of the files under a prefix begin with; empty for the whole corpus, which None stands for.

    As on S3, a prefix is the beginning of a name: of a folder if it ends in a slash, else of all that begin so.

    Args:
        corpus: its URI.
        prefix: an s3:// URI or a local path; one that holds the corpus stands for all of it.

    Raises:
        UserError: it is empty, or leads nowhere in the corpus.
    """
    if prefix is None:
        return ""
    if not prefix.strip():
        raise UserError(
            "the prefix is empty: the payload of an event corpus.shard.arrived must have one, such as "
            "s3://bucket/corpus/2026-11-25/; to compare the whole corpus, leave the parameter prefix out"
        )
    root, asked = _place(glob_root(corpus)).rstrip("/") + "/", _place(prefix)
    if root.startswith(asked):
        return ""
    if not asked.startswith(root):
        raise UserError(f"the prefix {prefix} is not in the corpus {corpus}; name a folder or file of it")
    return asked.removeprefix(root)


def unchanged_outside(listing: Listing, inventory: Inventory, within: str) -> Listing:
    """The listing of a corpus that has not changed but under a prefix since a generation was made.

    A file that has moved into the prefix is gone from where it was.

    Args:
        listing: made with this `within`.
        inventory: of the generation.
        within: what the names of the files begin with that are looked at.
    """
    held = {parse_shard_key(shard)[0] for _, shard in inventory.keys}
    held_names, listed_names = {file.name for file in held}, {file.name for file in listing.files}
    inside = {file for file in listing.files if file.name.startswith(within)}
    arrived = {(file.etag, file.size) for file in inside if file.name not in held_names}
    outside = {
        file
        for file in held
        if not file.name.startswith(within)
        and (file.name in listed_names or (file.etag, file.size) not in arrived)
    }
    return replace(listing, files=tuple(sorted(inside | outside)))


def _place(uri: str) -> str:
    """A URI or absolute path, with the slash at its end if it had one."""
    scheme, separator, path = check_uri(uri).partition("://")
    if separator and scheme != "file":
        return uri
    local = path if separator else uri
    return posixpath.join(os.path.abspath(local), "") if local.endswith("/") else os.path.abspath(local)  # noqa: PTH100
