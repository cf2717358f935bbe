"""Invariant: every item comes out once, as done or as failed with its cause, whatever dies on the way."""

import os
import signal
from pathlib import Path

import pytest
import ray

from lorif_core.errors import UserError
from tasks.dispatch import Done, Failed, dispatch

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(max_restarts=3, max_task_retries=3, num_cpus=0.5)
class Worker:
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

    def always_die(self, item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_every_item_once_and_poison_set_aside() -> None:
    workers = [Worker.remote() for _ in range(2)]
    outcomes = list(dispatch(workers, list(range(20)), lambda worker, item: worker.square.remote(item)))
    done = {outcome.item: outcome.result for outcome in outcomes if isinstance(outcome, Done)}
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert done == {item: item * item for item in range(20) if item != 13}
    assert failed.item == 13 and "ValueError: unlucky" in failed.cause


def test_a_killed_actor_is_restarted_and_its_call_repeated(tmp_path: Path) -> None:
    markers = [str(tmp_path / name) for name in "abc"]
    worker = Worker.remote()
    outcomes = list(dispatch([worker], markers, lambda actor, marker: actor.die_once.remote(marker)))
    assert sorted(outcome.result for outcome in outcomes if isinstance(outcome, Done)) == markers


def test_a_users_mistake_stops_at_once_with_its_own_sentence() -> None:
    worker = Worker.remote()
    with pytest.raises(UserError, match="the corpus is wrong"):
        list(dispatch([worker], [1, 99, 2], lambda actor, item: actor.square.remote(item)))


def test_when_every_actor_is_gone_every_item_left_is_named() -> None:
    worker = Worker.options(max_restarts=0, max_task_retries=0).remote()
    outcomes = list(dispatch([worker], [1, 2, 3, 4], lambda actor, item: actor.always_die.remote(item)))
    assert sorted(outcome.item for outcome in outcomes) == [1, 2, 3, 4]
    assert all(isinstance(outcome, Failed) and "ActorDied" in outcome.cause for outcome in outcomes)
