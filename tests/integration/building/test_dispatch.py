"""Invariant: every item has one outcome, Done or Failed with its cause, even if workers die."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.exceptions import OutOfMemoryError

from lorif_core.errors import DamagedFileError, LorifError, MemoryExhaustedError, StoreUnavailableError, UserError
from lorif_core.out_of_memory import MemorySetting
from tasks.cluster import Resources
from tasks.dispatch import Done, Failed, Workers
from tasks.workers.start import start

pytestmark = pytest.mark.usefixtures("ray_session")


class Role:
    calls_at_once = 3

    def __init__(self, cores: int) -> None:
        assert cores == 1

    def square(self, item: int) -> int:
        if item == 13:
            raise ValueError("unlucky")
        if item == 99:
            raise UserError("the corpus is wrong")
        return item * item

    def die_once(self, marker: str) -> str:
        path = Path(marker)
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return marker

    def die_of(self, item: int, poison: int) -> int:
        if item == poison:
            time.sleep(0.05)  # by now the other items are in flight
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        return item

    def refuse(self, folder: str, item: int) -> None:
        (Path(folder) / f"{item}-{time.monotonic_ns()}").touch()
        raise DamagedFileError(f"file {item} is cut off")

    def lacks_memory(self, marker: str, kind: str, wait: float) -> None:
        Path(marker).touch()
        time.sleep(wait)
        if kind == "limit":
            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
            torch.zeros(2**28)
        raise {
            "python": MemoryError(),
            "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "ray": OutOfMemoryError("the node runs low on memory"),
        }[kind]

    def store_fails(self, item: int) -> None:
        raise StoreUnavailableError("s3://bucket/index does not answer")


SETTINGS = (MemorySetting("compute.tokens_per_batch", 8192, 64), MemorySetting("compute.memory_gb", 4.0))
ADVICE = "lower compute.tokens_per_batch from 8192 to 4096, or compute.memory_gb from 4 to 2"


class Refusing:
    """A role that finds out when it starts that it cannot work."""

    def __init__(self, threads: int) -> None:
        raise UserError("the index is wrong")


def run(
    items: list[Any], call: Callable[[Any, Any], Any], count: int = 2, in_flight: int = 2
) -> list[Done | Failed]:
    with Workers(lambda: start(Role, Resources(count, 1, 0.0, count)), count, SETTINGS) as workers:
        return list(workers.run(items, call, in_flight))


def test_every_item_has_one_outcome_and_a_failing_item_is_set_aside() -> None:
    outcomes = run(list(range(20)), lambda host, item: host.call("square", item))
    done = {outcome.item: outcome.result for outcome in outcomes if isinstance(outcome, Done)}
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert done == {item: item * item for item in range(20) if item != 13}
    assert failed.item == 13 and "ValueError: unlucky" in failed.cause and failed.fault is None


def test_a_killed_actor_is_replaced_and_its_calls_are_repeated(tmp_path: Path) -> None:
    markers = [str(tmp_path / name) for name in "abc"]
    outcomes = run(markers, lambda host, marker: host.call("die_once", marker), count=1)
    assert sorted(outcome.result for outcome in outcomes if isinstance(outcome, Done)) == markers


def test_only_the_item_that_kills_its_worker_fails() -> None:
    outcomes = run(list(range(6)), lambda host, item: host.call("die_of", item, 3), count=1, in_flight=3)
    assert sorted(outcome.item for outcome in outcomes if isinstance(outcome, Done)) == [0, 1, 2, 4, 5]
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert failed.item == 3 and "ActorDied" in failed.cause
    assert isinstance(failed.fault, MemoryExhaustedError), "the system kills a process that lacks memory"
    assert ADVICE in failed.cause


@pytest.mark.parametrize("kind", ["limit", "python", "cuda", "ray"])
def test_a_lack_of_memory_stops_the_run_and_names_the_settings(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MemoryExhaustedError, match=f"a worker ran out of memory .*{ADVICE}") as raised:
        run([0], lambda host, item: host.call("lacks_memory", str(tmp_path / "x"), kind, 0.0), count=1)
    assert "corpus" not in str(raised.value) and raised.value.exit_code == 1


def test_an_item_that_lacks_memory_beside_others_is_tried_alone(tmp_path: Path) -> None:
    """The items that were in flight with it are done; none of them is set aside."""

    def call(host: Any, item: int) -> Any:
        if item != 1 or (tmp_path / "x").exists():
            return host.call("die_of", item, -1)
        return host.call("lacks_memory", str(tmp_path / "x"), "python", 0.05)

    outcomes = run(list(range(4)), call, count=1, in_flight=3)
    assert sorted(outcome.result for outcome in outcomes if isinstance(outcome, Done)) == [0, 1, 2, 3]


def test_a_kill_by_the_kernel_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts the processes that it has killed for memory."""
    counts = iter([7, 8, 8, 8, 8])
    monkeypatch.setattr("tasks.dispatch.kills_for_memory", lambda: next(counts))
    with pytest.raises(MemoryExhaustedError, match=f"a worker ran out of memory .*{ADVICE}"):
        run([3], lambda host, item: host.call("die_of", item, 3), count=1)


def test_a_mistake_of_the_user_stops_the_run_at_once() -> None:
    with pytest.raises(UserError, match="the corpus is wrong"):
        run([1, 99, 2], lambda host, item: host.call("square", item), count=1)


def test_a_mistake_that_a_role_finds_when_it_starts_stops_the_run_at_once() -> None:
    with (
        pytest.raises(UserError, match="the index is wrong"),
        Workers(lambda: start(Refusing, Resources(2, 1, 0.0, 2)), 2) as workers,
    ):
        list(workers.run([1], lambda host, item: host.call("square", item)))


def test_a_damaged_file_is_tried_twice_and_its_message_is_the_cause(tmp_path: Path) -> None:
    (failed,) = run([4], lambda host, item: host.call("refuse", str(tmp_path), item), count=1)
    assert isinstance(failed, Failed) and isinstance(failed.fault, DamagedFileError)
    assert failed.cause == "file 4 is cut off" and len(list(tmp_path.iterdir())) == 2


def test_a_store_that_keeps_failing_stops_the_run() -> None:
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        run(list(range(50)), lambda host, item: host.call("store_fails", item))


def test_the_run_ends_if_every_item_kills_its_worker() -> None:
    with pytest.raises(LorifError, match=f"in a row failed.*{ADVICE}"):
        run(list(range(100)), lambda host, item: host.call("die_of", item, item))


class Counter:
    """A role with a state of its own."""

    def __init__(self, first: int, cores: int) -> None:
        self._value = first

    def next(self, _: int) -> tuple[int, int]:
        self._value += 1
        return self._value, os.getpid()

    def fail(self, _: int) -> None:
        raise ValueError("unlucky")


def count_from(first: int, method: str = "next") -> list[Done | Failed]:
    with Workers(lambda: start(Counter, Resources(1, 1, 0.0, 1), first), 1) as workers:
        return list(workers.run([0], lambda host, item: host.call(method, item)))


def test_steps_share_a_process_and_never_a_role() -> None:
    """Also if the next step takes the process while it still frees the role of the last one."""
    outcomes = [count_from(first)[0] for first in range(0, 400, 10)]
    values = [outcome.result[0] for outcome in outcomes if isinstance(outcome, Done)]
    assert values == [first + 1 for first in range(0, 400, 10)]
    assert len({outcome.result[1] for outcome in outcomes if isinstance(outcome, Done)}) == 1


def test_a_step_that_raised_leaves_no_process_to_the_next_one() -> None:
    (before,) = count_from(0)
    with pytest.raises(ZeroDivisionError), Workers(lambda: start(Counter, Resources(1, 1, 0.0, 1), 0), 1):
        raise ZeroDivisionError
    (after,) = count_from(0)
    assert isinstance(before, Done) and isinstance(after, Done) and before.result[1] != after.result[1]


def test_workers_grow_in_number_between_runs() -> None:
    with Workers(lambda: start(Counter, Resources(2, 1, 0.0, 2), 0), 1) as workers:
        list(workers.run([0], lambda host, item: host.call("next", item)))
        workers.grow(2)
        workers.grow(1)
        assert workers.count == 2 == len(workers._workers)
        outcomes = workers.run(range(4), lambda host, item: host.call("next", item))
        assert len([outcome for outcome in outcomes if isinstance(outcome, Done)]) == 4


def test_other_reservations_end_idle_processes_to_have_room() -> None:
    """A worker that reserves both cores starts although an idle one has reserved one of them."""
    count_from(0)
    with Workers(lambda: start(Counter, Resources(1, 2, 0.0, 1), 5), 1) as workers:
        (outcome,) = workers.run([0], lambda host, item: host.call("next", item))
    assert isinstance(outcome, Done) and outcome.result[0] == 6
