"""The result of a command. Imports nothing heavy, so that `lorif --help` is quick."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found: plain values for `--json`, and the same for a person."""

    data: dict[str, Any]
    text: str


def listed(data: dict[str, Any]) -> Result:
    """A result with a line for each key."""
    return Result(data, "\n".join(f"{key}: {value}" for key, value in data.items()))
