"""Updates of a part of a corpus: the files under a prefix, which an event names; all others count as unchanged."""

import os
import posixpath
from dataclasses import replace

from lorif_core.config import check_uri
from lorif_core.corpus.shards import Listing
from lorif_core.errors import UserError
from lorif_core.spec import parse_shard_key
from lorif_core.storage.filesystem import glob_root
from lorif_core.tables.inventory import Inventory


def relative_prefix(corpus: str, prefix: str | None) -> str:
    """The prefix relative to the corpus, with which the names of its files begin; "" for the whole corpus.

    As on S3, a prefix is the beginning of a name. If it ends in a slash, it selects the files of a folder.

    Args:
        corpus: URI of the corpus.
        prefix: an s3:// URI or a local path; None or a parent of the corpus selects the whole corpus.

    Raises:
        UserError: the prefix is empty, or outside the corpus.
    """
    if prefix is None:
        return ""
    if not prefix.strip():
        raise UserError(
            "the prefix is empty: the payload of an event corpus.shard.arrived must have one, such as "
            "s3://bucket/corpus/2026-11-25/; to compare the whole corpus, leave the parameter prefix out"
        )
    root, requested = _absolute(glob_root(corpus)).rstrip("/") + "/", _absolute(prefix)
    if root.startswith(requested):
        return ""
    if not requested.startswith(root):
        raise UserError(f"the prefix {prefix} is not in the corpus {corpus}; name a folder or file of it")
    return requested.removeprefix(root)


def restrict_to_prefix(listing: Listing, inventory: Inventory, name_prefix: str) -> Listing:
    """The listing with all files outside a prefix as they are in a generation.

    A file that has moved from outside into the prefix is no longer at its old place.

    Args:
        listing: listing of the corpus, made with the same prefix.
        inventory: inventory of the generation.
        name_prefix: beginning of the names of the files to compare.
    """
    indexed = {parse_shard_key(shard)[0] for _, shard in inventory.keys}
    indexed_names, listed_names = {file.name for file in indexed}, {file.name for file in listing.files}
    inside = {file for file in listing.files if file.name.startswith(name_prefix)}
    arrived = {(file.etag, file.size) for file in inside if file.name not in indexed_names}
    outside = {
        file
        for file in indexed
        if not file.name.startswith(name_prefix)
        and (file.name in listed_names or (file.etag, file.size) not in arrived or file in listing.not_moved)
    }
    return replace(listing, files=tuple(sorted(inside | outside)))


def _absolute(uri: str) -> str:
    """The URI, or the absolute path if it is local; a slash at the end is preserved."""
    scheme, separator, path = check_uri(uri).partition("://")
    if separator and scheme != "file":
        return uri
    local = path if separator else uri
    return posixpath.join(os.path.abspath(local), "") if local.endswith("/") else os.path.abspath(local)  # noqa: PTH100
