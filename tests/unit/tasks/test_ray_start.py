"""Invariant: no signal gets lost while Ray starts, our handlers stay, and a Ray on loopback can be attached to."""

import signal
import socket
from collections.abc import Iterator
from types import FrameType

import pytest
import ray._private.utils
from ray._private.services import node_ip_address_from_perspective

from tasks.ray_start import _is_private, _late_signals, _own_sigterm_handler


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


def test_a_ray_that_listens_on_loopback_only_is_told_from_one_that_listens_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray replaces 127.0.0.1 by the address of the machine, where a private Ray does not listen."""
    address = node_ip_address_from_perspective()  # Ray's own function has that of a Ray that runs in this process
    monkeypatch.setattr("tasks.ray_start.get_node_ip_address", lambda: address)
    for host, expected in (("127.0.0.1", address != "127.0.0.1"), ("0.0.0.0", False)):
        with socket.create_server((host, 0)) as listener:
            assert _is_private(f"127.0.0.1:{listener.getsockname()[1]}") == expected
    assert not any(map(_is_private, ("auto", "10.0.0.1:6379", "ray://127.0.0.1:10001", "head:6379")))
