"""Invariant: one running process at a time holds the lease; a lease whose holder died does not block others."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError, StoreUnavailableError
from lorif_core.storage import lease as lease_module
from lorif_core.storage.lease import TIME_TO_LIVE, Lease, LeaseHeldError, current_holder, hold_lease
from lorif_core.storage.objects import Objects
from tests.patience import patience

TTL = 6.0  # time to live in seconds; renewals every sixth of it must be visible even on a busy machine
SHORT_TTL = 1.2  # for holders that do not renew


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path / "index"), StorageConfig())


def put_lease_of_other_machine(objects: Objects, time_to_live: float = TTL) -> int:
    """Write the lease object of a process on another machine; return the number of the lease."""
    with Lease(objects, "build", time_to_live=time_to_live) as own:
        value = own._value(own._number)
        number = own._number + 1
    holder = {**value["holder"], "machine": "elsewhere", "host": "node-7"}
    objects.put(f"lease/{number:012d}.json", {**value, "number": number, "token": "other", "holder": holder})
    return number


def test_a_lease_is_taken_confirmed_and_released(objects: Objects) -> None:
    with Lease(objects, "build", time_to_live=TTL) as first:
        first.confirm()
        assert str(os.getpid()) in str(current_holder(objects))
        with pytest.raises(LeaseHeldError, match=rf"in use by the build of \S+ on \S+ \(process {os.getpid()}"):
            Lease(objects, "gc", time_to_live=TTL).__enter__()
    assert current_holder(objects) is None
    with Lease(objects, "gc", time_to_live=TTL) as second:
        second.confirm()
        assert len(objects.names("lease")) == 1, "older leases are removed"


def test_a_holder_of_another_machine_that_does_not_renew_expires(objects: Objects) -> None:
    put_lease_of_other_machine(objects, SHORT_TTL)
    started = time.monotonic()
    with Lease(objects, "build") as lease:
        lease.confirm()
    assert time.monotonic() - started < TIME_TO_LIVE / 2, "the time to live of the holder counts"


@pytest.mark.parametrize("ahead", [60.0, 5 * 3600.0, 400 * 86400.0])
def test_a_lease_dated_in_the_future_expires_like_any_other(objects: Objects, ahead: float) -> None:
    """The clock of a machine that shares the folder may have been wrong."""
    number = put_lease_of_other_machine(objects, SHORT_TTL)
    later = time.time() + ahead
    os.utime(Path(objects.uri) / "_lorif" / "lease" / f"{number:012d}.json", (later, later))
    started = time.monotonic()
    with Lease(objects, "build") as lease:
        lease.confirm()
    assert time.monotonic() - started < TIME_TO_LIVE / 2


def contents() -> dict[str, bytes]:
    """Contents of a lease object that no version of lorif writes."""
    holder = {
        "what": "build", "user": "me", "host": "node-7", "machine": "elsewhere", "pid": 1, "started": 1.0,
        "since": "2026-01-01 00:00:00 UTC",
    }  # fmt: skip
    valid = {
        "number": 1, "token": "other", "holder": holder, "time_to_live": 60.0, "renewals": 0, "released": False
    }  # fmt: skip
    without = {f"no {key}": {name: valid[name] for name in valid if name != key} for key in valid}
    wrong = {f"{key} is a list": {**valid, key: []} for key in valid}
    lives = {f"lives for {life}": {**valid, "time_to_live": life} for life in (0, -1, 1e9, "60")}
    holders = {f"no {key} of the holder": {**valid, "holder": {**holder, key: None}} for key in holder}
    wrong_time = {"no time": {**valid, "holder": {**holder, "since": "yesterday"}}}
    objects = {**without, **wrong, **lives, **holders, **wrong_time, "a list": [], "null": None}
    texts = {"nothing": b"", "cut off": json.dumps(valid).encode()[:50], "binary": b"\x80\x02\xff", "NaN": b"NaN"}
    return {**{name: json.dumps(value).encode() for name, value in objects.items()}, **texts}


@pytest.mark.parametrize("case", contents())
def test_a_lease_with_unexpected_contents_is_told_in_a_sentence(objects: Objects, case: str) -> None:
    objects.put_bytes("lease/000000000001.json", contents()[case])
    for attempt in (Lease(objects, "build").__enter__, lambda: current_holder(objects)):
        with pytest.raises(
            LorifError, match=r"lease with unexpected contents.*0001\.json.*delete this object"
        ) as told:
            attempt()
        assert told.value.exit_code == 1 and "\n" not in str(told.value)


def test_a_file_that_is_no_lease_is_told_in_a_sentence(objects: Objects) -> None:
    objects.put_bytes("lease/notes.txt", b"mine")
    with pytest.raises(LorifError, match=r"unexpected contents, _lorif/lease/notes\.txt"):
        Lease(objects, "build").__enter__()


def test_a_holder_of_another_machine_that_renews_keeps_the_lease(objects: Objects) -> None:
    number = put_lease_of_other_machine(objects)
    name = f"lease/{number:012d}.json"

    def renew() -> None:
        time.sleep(0.5)
        value = objects.get(name)
        assert value is not None
        objects.put(name, {**value, "renewals": 1})

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(LeaseHeldError, match="node-7"):
        Lease(objects, "build", time_to_live=TTL).__enter__()
    thread.join()


def test_a_killed_holder_of_this_machine_is_replaced_at_once(objects: Objects) -> None:
    script = (
        "import sys, time; from lorif_core.storage.lease import *; from lorif_core.config import StorageConfig\n"
        f"with hold_lease({objects.uri!r}, StorageConfig(), 'build'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeldError):
        Lease(objects, "gc", time_to_live=TTL).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    with hold_lease(objects.uri, StorageConfig(), "build") as lease:
        lease.confirm()
    assert time.monotonic() - started < TIME_TO_LIVE / 2, "the lease is taken over before it expires"


def test_a_holder_that_was_suspended_and_replaced_may_not_commit(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended = Lease(objects, "build", time_to_live=SHORT_TTL)
    monkeypatch.setattr(suspended, "_keep_renewing", lambda: None)
    with suspended:
        monkeypatch.setattr(lease_module, "_machine", lambda: "elsewhere")
        with Lease(objects, "build", time_to_live=TTL) as other:
            other.confirm()
            with pytest.raises(LeaseHeldError, match="taken over by the build"):
                suspended.confirm()
        with pytest.raises(LeaseHeldError):
            suspended.confirm()
    newest = objects.names("lease")[-1]
    assert json.dumps(objects.get(newest.name))


def _race(uri: str, results: "multiprocessing.Queue[str]", barrier: "multiprocessing.Barrier") -> None:  # type: ignore[valid-type]
    barrier.wait()
    try:
        with Lease(Objects(uri, StorageConfig()), "build", time_to_live=TTL):
            results.put("held")
            barrier.wait()
    except LeaseHeldError:
        results.put("refused")
        barrier.wait()


def test_one_of_several_simultaneous_processes_gets_the_lease(objects: Objects) -> None:
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(4, timeout=patience(240))
    processes = [context.Process(target=_race, args=(objects.uri, results, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=patience(240)) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_failed_renewal_is_logged_and_the_lease_stays_valid(
    objects: Objects, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise StoreUnavailableError("the store is unavailable")

    with Lease(objects, "build", time_to_live=SHORT_TTL) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(objects, "put", fail)
            assert failed.wait(patience(60))
        lease.confirm()
    assert "could not be renewed: the store is unavailable" in caplog.text


def test_the_clock_may_be_set_while_a_lease_is_held(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the boot, as the kernel tells it, moves with the clock."""
    with Lease(objects, "build", time_to_live=TTL):
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
        holder = current_holder(objects)
        assert holder is not None and not holder.is_gone()
        assert replace(holder, pid=2**22 + 1).is_gone(), "no process has such an id"


def test_a_reused_process_id_is_another_process(objects: Objects) -> None:
    with Lease(objects, "build", time_to_live=TTL):
        holder = current_holder(objects)
        assert holder is not None and not holder.is_gone()
        assert replace(holder, started=holder.started - 5).is_gone()
        assert not replace(holder, started=holder.started - 5, machine="elsewhere").is_gone()
        assert asdict(holder)["what"] == "build"
