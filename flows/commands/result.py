"""The result of a command. This module imports nothing large, so that `lorif --help` is fast."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command: plain values for `--json`, the same as text for people, and the exit code."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


def listed(data: dict[str, Any]) -> Result:
    """A result whose text has one line per key."""
    return Result(data, "\n".join(f"{key}: {value}" for key, value in data.items()))
