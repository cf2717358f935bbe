"""The lease of an index or output folder: one process at a time writes there.

Leases are numbered objects. The process that creates number n + 1 holds the lease; this requires only
If-None-Match of the store. The holder renews its own object, which no other process writes. A lease whose holder
died does not block others: a holder counts as dead if its process no longer runs on this machine, or if it has not
renewed the lease for its time to live, both by the store's clock and by the clock of the process that waits.
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
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.storage.objects import Objects
from lorif_core.storage.probe import probe_conditional_put

log = logging.getLogger(__name__)

TIME_TO_LIVE = 60.0
_RENEWALS_PER_LIFE = 6
_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 3.0
_PROCESSES = Path("/proc")
_FOLDER = "lease"
_TIME = "%Y-%m-%d %H:%M:%S UTC"
_LONGEST_LIFE = 3600.0


class LeaseHeldError(LorifError):
    """Another process holds the lease or has taken it over; the message names the location and the process."""


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def _check_time(text: str) -> str:
    _time(text)
    return text


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease, with the data to decide on its own machine whether it still runs.

    Attributes:
        what: the command.
        machine: boot and process namespace, see `_machine`.
        started: clock ticks from the boot to the start of the process, since process ids are reused.
        since: when it took the lease.
    """

    what: str
    user: str
    host: str
    machine: str
    pid: int
    started: float
    since: Annotated[str, AfterValidator(_check_time)]

    def __str__(self) -> str:
        return f"the {self.what} of {self.user} on {self.host} (process {self.pid}, since {self.since})"

    @property
    def held_since(self) -> datetime:
        """`since` as a time."""
        return _time(self.since)

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; always False for a process of another machine."""
        if self.machine != _machine() or not _PROCESSES.is_dir():
            return False
        state, started = _state_and_start(self.pid)
        return started != self.started or state == "Z"


@dataclass(frozen=True, slots=True)
class _Record:
    """The content of a lease object; `token` is unique to the process, `renewals` counts."""

    number: int
    token: str
    holder: Holder
    time_to_live: Annotated[float, Field(gt=0, le=_LONGEST_LIFE)]
    renewals: int
    released: bool


_RECORD = TypeAdapter(_Record)


class Lease(AbstractContextManager["Lease"]):
    """Context manager that holds the lease and renews it in a thread.

    Args:
        objects: small objects of the index or output folder.
        command: name of the command, for the message to a process that is refused.
        atomic: whether the store applies conditional puts atomically; if not, the lease is checked again after a
            few seconds.
        time_to_live: seconds without renewal after which another process may take the lease over.
    """

    def __init__(
        self, objects: Objects, command: str, *, atomic: bool = True, time_to_live: float = TIME_TO_LIVE
    ) -> None:
        self._objects, self._atomic, self._time_to_live = objects, atomic, time_to_live
        self._holder = _this_process(command)
        self._token = uuid.uuid4().hex
        self._number = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        """Take the lease; another holder is watched first. Raises LeaseHeldError if that holder is alive."""
        while self._number == 0:
            number, record = _newest(self._objects)
            if record is not None and not record.released:
                self._wait_for_end(number, record)
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
                self._objects.put(_name(self._number), self._value(self._number, released=True))
        except LorifError as failure:  # the lease expires by itself, so the outcome of the command is reported
            log.warning("the lease of %s could not be released: %s", self._objects.uri, failure)

    def confirm(self) -> None:
        """Raise LeaseHeldError unless this process still holds the lease; call it right before every commit."""
        if not self._is_newest():
            number, record = _newest(self._objects)
            holder = "another process" if record is None else record.holder
            raise LeaseHeldError(
                f"{self._objects.uri} was taken over by {holder} (lease {number}) while this process did not "
                f"renew its lease; nothing is lost, run the command again when the other one has ended"
            )

    def _wait_for_end(self, number: int, record: _Record) -> None:
        """Return when the holder is dead or has expired. Raises LeaseHeldError at its next renewal."""
        uri, holder, time_to_live = self._objects.uri, record.holder, record.time_to_live
        if holder.is_gone():
            log.info("%s has ended without releasing its lease; taking %s over", holder, uri)
            return
        entry = self._objects.entry(_name(number))
        idle = 0.0 if entry is None else (self._objects.clock() - entry.modified).total_seconds()
        idle = max(idle, 0.0)  # the clock of the holder may be ahead; it is watched for its time to live at most
        deadline = time.monotonic() + time_to_live - idle
        if idle < time_to_live:
            log.info("%s holds %s; watching it for up to %.0f s", holder, uri, time_to_live - idle)
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_SECONDS, time_to_live / 10))
            current_number, current = _newest(self._objects)
            if current is None or current.released:
                return
            if (current_number, current.renewals) != (number, record.renewals):
                raise LeaseHeldError(f"{uri} is in use by {current.holder}; wait until it has ended")
        log.warning("%s has not renewed its lease for %.0f s; taking %s over", holder, time_to_live, uri)

    def _try_to_take(self, number: int) -> None:
        if not self._objects.create(_name(number), self._value(number)):
            return  # another process was faster; `__enter__` watches it like any holder
        if not self._atomic:
            time.sleep(_SETTLE_SECONDS)  # the object of the last writer remains
            stored = self._objects.get(_name(number))
            if stored is None or stored.get("token") != self._token:
                return
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        if names[-1] != _name(number):  # other processes took and released later leases since the listing
            self._objects.remove([_name(number)])
            return
        self._number = number
        self._objects.remove(names[:-1])

    def _keep_renewing(self) -> None:
        renewals = 0
        while not self._ended.wait(self._time_to_live / _RENEWALS_PER_LIFE):
            renewals += 1
            try:
                self._objects.put(_name(self._number), self._value(self._number, renewals=renewals))
            except LorifError as error:
                log.warning("the lease of %s could not be renewed: %s", self._objects.uri, error)

    def _is_newest(self) -> bool:
        """Whether no process has taken over; reads the store, because this process may have been suspended."""
        number, record = _newest(self._objects)
        return number == self._number and record is not None and record.token == self._token

    def _value(self, number: int, *, renewals: int = 0, released: bool = False) -> dict[str, Any]:
        return asdict(_Record(number, self._token, self._holder, self._time_to_live, renewals, released))


@contextmanager
def hold_lease(uri: str, storage: StorageConfig, command: str) -> Iterator[Lease]:
    """Probe the store, log the result, and hold the lease. Everything that commits runs inside this block.

    Raises:
        LeaseHeldError: a running process holds the lease.
        UserError: the location cannot be written.
    """
    objects = Objects(uri, storage)
    probed = probe_conditional_put(objects)
    log.log(logging.INFO if probed.atomic else logging.WARNING, "%s: %s", uri, probed.sentence())
    with Lease(objects, command, atomic=probed.atomic) as lease:
        yield lease


def current_holder(objects: Objects) -> Holder | None:
    """The holder of the lease; None if it is released, expired, or its process is known to have ended.

    Raises:
        LorifError: the lease has unexpected contents.
    """
    number, record = _newest(objects)
    if record is None or record.released or record.holder.is_gone():
        return None
    entry = objects.entry(_name(number))
    if entry is None or (datetime.now(UTC) - entry.modified).total_seconds() > 2 * record.time_to_live:
        return None
    return record.holder


def _newest(objects: Objects) -> tuple[int, _Record | None]:
    """Number and content of the newest lease; (0, None) if there is none.

    Raises:
        LorifError: it has unexpected contents.
    """
    entries = objects.names(_FOLDER)
    if not entries:
        return 0, None
    name = entries[-1].name
    content = objects.get_bytes(name)
    try:
        return int(Path(name).stem), None if content is None else _RECORD.validate_json(content, strict=True)
    except ValueError:
        raise LorifError(
            f"{objects.uri} has a lease with unexpected contents, _lorif/{name}; if no process writes there, "
            f"delete this object and run the command again"
        ) from None


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:012d}.json"


def _this_process(command: str) -> Holder:
    since, pid = datetime.now(UTC).strftime(_TIME), os.getpid()
    return Holder(command, _user(), socket.gethostname(), _machine(), pid, _state_and_start(pid)[1], since)


def _state_and_start(pid: int) -> tuple[str, float]:
    """State of a process, `Z` for a zombie, and its start in clock ticks since the boot; "" and 0 without one."""
    try:
        fields = (_PROCESSES / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0.0
    return fields[0], float(fields[19])  # fields 3 and 22 of proc(5); the name of a process may contain spaces


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return str(os.getuid())


def _machine() -> str:
    """Host, boot and process namespace: a process id identifies a process only within all three."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return "/".join(
        [
            socket.gethostname(),
            boot.read_text().strip() if boot.exists() else "",
            str(namespace.readlink()) if namespace.is_symlink() else "",
        ]
    )
