"""The folders that Prefect and Ray write to; others take their place if the usual ones cannot be used."""

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from lorif_core.errors import UserError

log = logging.getLogger(__name__)

_SOCKET_PATH_BYTES = 107  # what a path of a Unix socket can have
_RAY_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_RAY_FOLDER_BYTES = _SOCKET_PATH_BYTES - len(_RAY_SOCKET)
_SHORT_FOLDERS = ("/tmp", "/var/tmp")


def provide_home() -> None:
    """Set HOME and PREFECT_HOME to temporary folders if there is no home folder or Prefect cannot write its own.

    A home folder that exists is kept even if it cannot be written: it may have credentials and downloads.

    Raises:
        UserError: there is no folder for temporary files either.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises if a user has none
    if not Path(home).is_dir():
        os.environ["HOME"] = _scratch_folder()
    usual = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    if not _can_write(usual):
        folder = Path(_scratch_folder()) / "prefect"
        log.warning("%s cannot be written, so the history of this run is not kept; set PREFECT_HOME", usual)
        os.environ["PREFECT_HOME"] = str(folder)


def private_ray_folder() -> str:
    """A folder for the sockets and logs of a private Ray, with a path that is short enough for a socket.

    Raises:
        UserError: none of the usual folders can be used.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT_FOLDERS[0]
    for parent in dict.fromkeys((usual, *_SHORT_FOLDERS)):
        folder = Path(parent) / "ray"
        if len(os.fsencode(folder)) <= _RAY_FOLDER_BYTES and _can_write(folder):
            return str(folder)
    raise UserError(
        f"Ray can write neither to {usual}/ray nor below {' or '.join(_SHORT_FOLDERS)}; set RAY_TMPDIR to "
        f"a folder that can be written and whose path has at most {_RAY_FOLDER_BYTES - len('/ray')} bytes"
    )


@cache
def _scratch_folder() -> str:
    """A folder of this process for files that nobody misses; processes that it starts use it too."""
    try:
        folder = tempfile.mkdtemp(prefix="lorif-")
    except OSError as error:
        raise UserError(
            f"there is no folder for temporary files ({error.strerror or error}); set TMPDIR to one that can be "
            f"written"
        ) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _can_write(folder: Path) -> bool:
    """Whether a file can be written there. It tries: permissions do not tell of read-only or full disks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError:
        return False
    return True
