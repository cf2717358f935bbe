"""The result of a command. This module imports nothing large, so that `lorif --help` is fast."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command: plain values for `--json`, the same for people, and the exit code.

    `text` is text, or anything that rich lays out, such as a table or a group of tables and texts.
    """

    data: dict[str, Any]
    text: "RenderableType"
    exit_code: int = 0


def listed(data: Mapping[str, Any], *lines: str) -> Result:
    """A result whose text has one line per key, and then some more lines."""
    return Result(dict(data), "\n".join([*(f"{key}: {value}" for key, value in data.items()), *lines]))
