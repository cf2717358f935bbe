"""What signals do to a command: the first one ends it in an orderly way, a second one at once."""

import os
import signal
from types import FrameType

import psutil

SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
SIGINT_EXIT_CODE = 128 + signal.SIGINT


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it unwinds the command, which can be run again to resume."""


class Interrupts:
    """The handlers of SIGINT and SIGTERM of a command, from now until the process ends."""

    def __init__(self) -> None:
        self._is_ending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def command_has_ended(self) -> None:
        """From now on a signal ends the process at once, because nobody could catch an exception."""
        self._is_ending = True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_ending:
            _end_now(128 + number)
        self._is_ending = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end_now(code: int) -> None:
    """End the processes that this one has started, and then itself, without a word."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(code)
