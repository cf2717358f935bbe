"""Invariant: one living process at a time holds an index; a dead one keeps nobody out."""

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
from lorif_core.errors import StoreUnavailableError
from lorif_core.storage import lease as lease_module
from lorif_core.storage.lease import TIME_TO_LIVE, Lease, LeaseHeldError, current_holder, hold
from lorif_core.storage.objects import Objects

LIFE = 6.0  # a living holder is seen after a sixth of it, however busy the machine is
SHORT = 1.2  # of holders that do not renew


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path / "index"), StorageConfig())


def held_elsewhere(objects: Objects, life: float = LIFE) -> int:
    """A lease of a process on another machine, as its object would be; its number."""
    with Lease(objects, "build", time_to_live=life) as mine:
        value = mine._value(released=False)
        number = mine._number + 1
    holder = {**value["holder"], "machine": "elsewhere", "host": "node-7"}
    objects.put(f"lease/{number:012d}.json", {**value, "number": number, "token": "theirs", "holder": holder})
    return number


def test_taken_held_and_released(objects: Objects) -> None:
    with Lease(objects, "build", time_to_live=LIFE) as first:
        first.confirm()
        assert str(os.getpid()) in str(current_holder(objects))
        with pytest.raises(LeaseHeldError, match=rf"in use by the build of \S+ on \S+ \(process {os.getpid()}"):
            Lease(objects, "gc", time_to_live=LIFE).__enter__()
    assert current_holder(objects) is None
    with Lease(objects, "gc", time_to_live=LIFE) as second:
        second.confirm()
        assert len(objects.names("lease")) == 1, "older leases are pruned"


def test_a_holder_of_another_machine_that_does_not_renew_expires(objects: Objects) -> None:
    held_elsewhere(objects, SHORT)
    began = time.monotonic()
    with Lease(objects, "build") as lease:
        lease.confirm()
    assert time.monotonic() - began < TIME_TO_LIVE / 2, "it is the holder's time to live that counts"


def test_a_holder_of_another_machine_that_renews_keeps_it(objects: Objects) -> None:
    number = held_elsewhere(objects)
    name = f"lease/{number:012d}.json"

    def renew() -> None:
        time.sleep(0.5)
        value = objects.get(name)
        assert value is not None
        objects.put(name, {**value, "renewals": 1})

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(LeaseHeldError, match="node-7"):
        Lease(objects, "build", time_to_live=LIFE).__enter__()
    thread.join()


def test_a_killed_holder_of_this_machine_is_replaced_at_once(objects: Objects) -> None:
    script = (
        "import sys, time; from lorif_core.storage.lease import *; from lorif_core.config import StorageConfig\n"
        f"with hold({objects.uri!r}, StorageConfig(), 'build'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeldError):
        Lease(objects, "gc", time_to_live=LIFE).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with hold(objects.uri, StorageConfig(), "build") as lease:
        lease.confirm()
    assert time.monotonic() - began < TIME_TO_LIVE / 2, "it need not expire"


def test_a_holder_that_was_stopped_and_replaced_may_not_commit(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Lease(objects, "build", time_to_live=SHORT)
    monkeypatch.setattr(sleeper, "_keep_renewing", lambda: None)
    with sleeper:
        monkeypatch.setattr(lease_module, "_machine", lambda: "elsewhere")
        with Lease(objects, "build", time_to_live=LIFE) as other:
            other.confirm()
            with pytest.raises(LeaseHeldError, match="taken over by the build"):
                sleeper.confirm()
        with pytest.raises(LeaseHeldError):
            sleeper.confirm()
    value = objects.names("lease")[-1]
    assert json.dumps(objects.get(value.name))


def _race(uri: str, results: "multiprocessing.Queue[str]", together: "multiprocessing.Barrier") -> None:  # type: ignore[valid-type]
    together.wait()
    try:
        with Lease(Objects(uri, StorageConfig()), "build", time_to_live=LIFE):
            results.put("held")
            together.wait()
    except LeaseHeldError:
        results.put("refused")
        together.wait()


def test_of_many_that_start_at_once_one_holds_it(objects: Objects) -> None:
    context = multiprocessing.get_context("spawn")
    results, together = context.Queue(), context.Barrier(4, timeout=240)
    processes = [context.Process(target=_race, args=(objects.uri, results, together)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_lost_renewal_is_survived_and_told(
    objects: Objects, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise StoreUnavailableError("the store is away")

    with Lease(objects, "build", time_to_live=SHORT) as lease:
        with monkeypatch.context() as fault:
            fault.setattr(objects, "put", fail)
            assert failed.wait(60)
        lease.confirm()
    assert "could not be renewed: the store is away" in caplog.text


def test_a_process_number_of_another_start_is_another_process(objects: Objects) -> None:
    with Lease(objects, "build", time_to_live=LIFE):
        holder = current_holder(objects)
        assert holder is not None and not holder.is_gone()
        assert replace(holder, started=holder.started - 5).is_gone()
        assert not replace(holder, started=holder.started - 5, machine="elsewhere").is_gone()
        assert asdict(holder)["what"] == "build"
