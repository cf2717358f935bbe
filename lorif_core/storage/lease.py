"""The lease of an index or a folder of answers: one process at a time writes there; the dead keep nobody out.

Leases are numbered objects. Whoever creates number n + 1 holds the place, which needs nothing of a store but
If-None-Match; the holder renews its own object, which nobody else writes. A holder is known to be dead when its
process is gone from this machine, and taken for dead when its lease was not renewed for its time to live, by the
store's own clock and by the watcher's.
"""

import getpass
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.storage.objects import Objects
from lorif_core.storage.probe import probe_conditional_put

log = logging.getLogger(__name__)

TIME_TO_LIVE = 60.0
_RENEWALS_PER_LIFE = 6
_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 3.0
_FOLDER = "lease"
_TIME = "%Y-%m-%d %H:%M:%S UTC"


class LeaseHeldError(LorifError):
    """Another process holds the place, or has taken it over; the message names both."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease, identified well enough to tell on its own machine whether it still runs."""

    what: str
    user: str
    host: str
    machine: str
    pid: int
    started: float
    since: str

    def __str__(self) -> str:
        return f"the {self.what} of {self.user} on {self.host} (process {self.pid}, since {self.since})"

    @property
    def begun(self) -> datetime:
        """`since` as a time."""
        return datetime.strptime(self.since, _TIME).replace(tzinfo=UTC)

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; never true of a process of another machine."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Lease(AbstractContextManager["Lease"]):
    """Holds a place from `with` to its end, renewing in a thread.

    Args:
        objects: small objects of the place.
        what: the command, for whoever is refused.
        atomic: whether the store honours conditional puts; otherwise the lease is looked at again a while later.
        time_to_live: seconds without renewal after which others may take it over.
    """

    def __init__(
        self, objects: Objects, what: str, *, atomic: bool = True, time_to_live: float = TIME_TO_LIVE
    ) -> None:
        self._objects, self._atomic, self._life = objects, atomic, time_to_live
        self._holder = _myself(what)
        self._token = uuid.uuid4().hex
        self._number = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        """Take the place. Raises LeaseHeldError at a sign of life of another holder, which is watched for one."""
        while self._number == 0:
            number, value = _newest(self._objects)
            if value is not None and not value["released"]:
                self._await_end(number, value)
            self._try_to_take(number + 1)
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._is_newest():
                self._objects.put(_name(self._number), self._value(released=True))
        except LorifError as failure:  # it expires by itself; the build's own outcome matters more
            log.warning("the lease of %s could not be released: %s", self._objects.uri, failure)

    def confirm(self) -> None:
        """Raise LeaseHeldError unless the place is still ours: to be called right before every commit."""
        if not self._is_newest():
            number, value = _newest(self._objects)
            holder = "another process" if value is None else _holder(value)
            raise LeaseHeldError(
                f"{self._objects.uri} was taken over by {holder} (lease {number}) while this process "
                f"did not answer; nothing of it is lost, run the command again when that one has ended"
            )

    def _await_end(self, number: int, value: dict[str, Any]) -> None:
        """Return when the holder is dead or expired. Raises LeaseHeldError at its next sign of life."""
        holder, life = _holder(value), float(value["time_to_live"])
        if holder.is_gone():
            log.info("%s is gone; taking %s over", holder, self._objects.uri)
            return
        entry = self._objects.entry(_name(number))
        idle = 0.0 if entry is None else (self._objects.clock() - entry.modified).total_seconds()
        patience = time.monotonic() + life - idle
        if idle < life:
            log.info("%s holds %s; watching it for up to %.0f s", holder, self._objects.uri, life - idle)
        while time.monotonic() < patience:
            time.sleep(min(_POLL_SECONDS, life / 10))
            now_number, now = _newest(self._objects)
            if now is None or now["released"]:
                return
            if (now_number, now["renewals"]) != (number, value["renewals"]):
                raise LeaseHeldError(f"{self._objects.uri} is in use by {_holder(now)}; wait until it has ended")
        log.warning("%s has not renewed its lease for %.0f s; taking %s over", holder, life, self._objects.uri)

    def _try_to_take(self, number: int) -> None:
        if not self._objects.create(_name(number), self._value(released=False, number=number)):
            return  # another was faster: it is watched like any holder
        if not self._atomic:
            time.sleep(_SETTLE_SECONDS)  # the last of two writers stands
            found = self._objects.get(_name(number))
            if found is None or found["token"] != self._token:
                return
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        if names[-1] != _name(number):  # we had looked before others came and went
            self._objects.remove([_name(number)])
            return
        self._number = number
        self._objects.remove(names[:-1])

    def _keep_renewing(self) -> None:
        renewals = 0
        while not self._ended.wait(self._life / _RENEWALS_PER_LIFE):
            renewals += 1
            try:
                self._objects.put(_name(self._number), self._value(released=False, renewals=renewals))
            except LorifError as error:
                log.warning("the lease of %s could not be renewed: %s", self._objects.uri, error)

    def _is_newest(self) -> bool:
        """Whether nobody has taken over; asked of the store, as this process may have been stopped for long."""
        number, value = _newest(self._objects)
        return number == self._number and value is not None and value["token"] == self._token

    def _value(self, *, released: bool, number: int = 0, renewals: int = 0) -> dict[str, Any]:
        return {
            "number": number or self._number,
            "token": self._token,
            "holder": asdict(self._holder),
            "time_to_live": self._life,
            "renewals": renewals,
            "released": released,
        }


@contextmanager
def hold(uri: str, storage: StorageConfig, what: str) -> Iterator[Lease]:
    """Try what the store promises, say so, and hold the place: around everything that commits to it.

    Raises:
        LeaseHeldError: a living process holds it.
        UserError: the location cannot be written.
    """
    objects = Objects(uri, storage)
    found = probe_conditional_put(objects)
    log.log(logging.INFO if found.atomic else logging.WARNING, "%s: %s", uri, found.sentence())
    with Lease(objects, what, atomic=found.atomic) as lease:
        yield lease


def current_holder(objects: Objects) -> Holder | None:
    """Who holds the place: not released, not known to be gone, not expired by the store's clock."""
    number, value = _newest(objects)
    if value is None or value["released"] or _holder(value).is_gone():
        return None
    entry = objects.entry(_name(number))
    if entry is None or (datetime.now(UTC) - entry.modified).total_seconds() > 2 * value["time_to_live"]:
        return None
    return _holder(value)


def _newest(objects: Objects) -> tuple[int, dict[str, Any] | None]:
    """Number and value of the newest lease; (0, None) where there never was one."""
    entries = objects.names(_FOLDER)
    if not entries:
        return 0, None
    name = entries[-1].name
    return int(Path(name).stem), objects.get(name)


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:012d}.json"


def _holder(value: dict[str, Any]) -> Holder:
    return Holder(**value["holder"])


def _myself(what: str) -> Holder:
    process = psutil.Process()
    since = datetime.now(UTC).strftime(_TIME)
    return Holder(what, _user(), socket.gethostname(), _machine(), process.pid, process.create_time(), since)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())


def _machine() -> str:
    """Boot and process namespace: a process number means the same process only within both."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return "/".join(
        [
            socket.gethostname(),
            boot.read_text().strip() if boot.exists() else "",
            str(namespace.readlink()) if namespace.is_symlink() else "",
        ]
    )
