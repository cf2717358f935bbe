"""Invariant: no signal gets lost while Ray starts, and our handlers of signals stay."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest
import ray._private.utils

from tasks.ray_start import _late_signals, _own_sigterm_handler


class Arrived(BaseException):
    """What the handlers of this test raise."""


@pytest.fixture
def handlers() -> Iterator[None]:
    def handle(number: int, _: FrameType | None) -> None:
        raise Arrived(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, former in before.items():
        signal.signal(number, former)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_when_ray_has_started(number: int) -> None:
    steps = []
    with pytest.raises(Arrived, match=str(int(number))), _late_signals():
        signal.raise_signal(number)
        steps.append("started")
    assert steps == ["started"]
    with pytest.raises(Arrived):
        signal.raise_signal(number)  # by our handler, which is back


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_takes_effect_at_once() -> None:
    steps = []
    with pytest.raises(Arrived, match=str(int(signal.SIGTERM))), _late_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        steps.append("started")
    assert steps == []


@pytest.mark.usefixtures("handlers")
def test_ray_does_not_replace_our_handler() -> None:
    ours = signal.getsignal(signal.SIGTERM)
    with _own_sigterm_handler():
        ray._private.utils.set_sigterm_handler(lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is ours
