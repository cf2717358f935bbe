"""The `lorif` command, in this process or as a program."""

import sys
from pathlib import Path

import pytest

from flows.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; returns (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


LORIF = [str(Path(sys.executable).parent / "lorif")]
