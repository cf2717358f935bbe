"""Datasets of the Hugging Face hub as read-only files, which are read by range and at one commit.

The tag of a file is the id of its blob: a commit that leaves a file as it was leaves its tag, too. The hub's
address and token come from HF_ENDPOINT and HF_TOKEN, or from `hf auth login`, never from a config.
"""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_file_system import HfFileSystemFile, safe_revision
from huggingface_hub.utils import parse_hf_uri

from lorif_core.errors import LorifError, StoreUnavailableError, StoreUnreachableError, UserError
from lorif_core.storage.faults import one_line

_FORM = "write hf://datasets/OWNER/NAME[@REVISION][/SPLIT]"
_LOGIN = "set HF_TOKEN, or run `hf auth login`"
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A place in a dataset of the hub: its repository, a revision (None is the default branch), a path in it."""

    repository: str
    revision: str | None
    path: str

    @property
    def uri(self) -> str:
        """The place as a URI."""
        revision = "" if self.revision is None else f"@{safe_revision(self.revision)}"
        return f"hf://datasets/{posixpath.join(self.repository + revision, self.path)}".rstrip("/")


def parse_hub_uri(uri: str) -> HubDataset:
    """The place that a URI names. Raises UserError if it is not in a dataset."""
    try:
        parsed = parse_hf_uri(uri)
    except (HfUriError, HFValidationError) as error:
        raise UserError(f"{uri} is not an address of the hub ({one_line(error)}); {_FORM}") from None
    if parsed.type != "dataset":
        raise UserError(f"{uri} names no dataset of the hub; {_FORM}")
    return HubDataset(parsed.id, parsed.revision, parsed.path_in_repo)


def pinned(place: HubDataset) -> HubDataset:
    """The place at the commit that its revision now leads to. Raises as `hub_errors`."""
    with hub_errors(place.uri):
        info = HfApi().dataset_info(place.repository, revision=place.revision, timeout=_TIMEOUT_SECONDS)
    return HubDataset(place.repository, info.sha, place.path)


class HubFiles(HfFileSystem):
    """The hub's file system with errors in the project's words.

    All threads of a process share one, see `hub_files`. A copy that is sent to another process takes no listings.
    """

    def info(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As fsspec's; raises FileNotFoundError."""
        with hub_errors(f"hf://{path}"):
            return super().info(path, *args, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As fsspec's."""
        with hub_errors(f"hf://{path}"):
            return super().find(path, *args, **kwargs)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> "_HubFile":
        with hub_errors(f"hf://{path}"):
            return _HubFile(self, path, mode=mode, block_size=block_size or "default", **kwargs)

    def __reduce__(self) -> tuple[Callable[[], "HubFiles"], tuple[()]]:
        return hub_files, ()


class _HubFile(HfFileSystemFile):
    """A file that is read by range, also when it is read to its end."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with hub_errors(f"hf://{self.path}"):
            content: bytes = super()._fetch_range(start, end)
        if len(content) != end - start:  # a proxy may answer without the range
            raise StoreUnavailableError(
                f"hf://{self.path} cannot be read: the hub sent {len(content)} bytes instead of {end - start}; "
                f"run the command again"
            )
        return content

    def read(self, length: int = -1) -> bytes:
        """As a file's."""
        content: bytes = super().read(self.size - self.loc if length is None or length < 0 else length)
        return content


@cache
def hub_files() -> HubFiles:
    """The file system of this process."""
    return HubFiles(skip_instance_cache=True)


@contextmanager
def hub_errors(uri: str) -> Iterator[None]:
    """Convert errors of the hub and its client to errors with a clear message.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the dataset or revision does not exist, or the token may not read it.
        StoreUnreachableError, StoreUnavailableError: the hub does not answer, or fails after the client's retries.
        LorifError: the hub refuses the request for another reason.
    """
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
            raise _explained(error.__cause__, uri) from None
        raise
    except EntryNotFoundError:
        raise FileNotFoundError(uri) from None
    except (httpx2.HTTPError, ConnectionError) as error:
        raise _explained(error, uri) from None


def _explained(error: Exception, uri: str) -> LorifError:
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{uri} cannot be read, because HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, GatedRepoError):
        return UserError(f"{uri} is gated; accept its terms on the page of the dataset, and {_LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{uri} does not exist on the hub, or is private; correct the name, or {_LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{uri} has a revision that does not exist; name a branch, tag or commit")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return UserError(f"{uri} may not be read with the token of this machine; {_LOGIN} with another one")
    if status is not None and status != 429 and status < 500:
        return LorifError(f"{uri} cannot be read: the hub answers {status} ({one_line(error)})")
    if isinstance(error, httpx2.ConnectError):
        return StoreUnreachableError(
            f"{uri} cannot be read: nothing answers at the hub; check HF_ENDPOINT and the network"
        )
    symptom = f"answers {status}" if status is not None else "does not answer, or closes the connection"
    return StoreUnavailableError(
        f"{uri} cannot be read: the hub {symptom}; nothing is lost, run the command again later"
    )
