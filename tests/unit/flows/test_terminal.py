"""Invariant: a terminal gets lines that fit it, coloured unless NO_COLOR is set; a pipe gets whole plain lines."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

SCRIPT = (
    "from flows.tables import ranking_text; from flows.terminal import write_error, write_text\n"
    "hits = [{'rank': 1, 'score': 12.5, 'example_id': 'docs/[red]a', 'text': 'words in any language 日本 ' * 9}]\n"
    "write_text(ranking_text({'proponents': hits, 'opponents': []}))\n"
    "write_error('a [bold]sentence[/bold]')"
)

_ESCAPES = re.compile("\x1b\\[[0-9;]*m")


def on_a_terminal(columns: int, **variables: str) -> str:
    """What the script writes to a terminal of this width."""
    leader, follower = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path.cwd()),
        "TERM": "xterm",
        "COLUMNS": str(columns),
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, **variables},
    ) as process:
        os.close(follower)
        chunks = []
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        process.wait()
    os.close(leader)
    return b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal(columns: int) -> None:
    lines = [_ESCAPES.sub("", line) for line in on_a_terminal(columns).splitlines()]
    assert max(map(cell_len, lines)) <= columns and len(lines) > 3
    assert any("docs/[red]a" in line for line in lines)


def test_colours_obey_no_color() -> None:
    assert "\x1b[" in on_a_terminal(80)
    plain = on_a_terminal(80, NO_COLOR="1")
    assert "\x1b[3" not in plain and "a [bold]sentence[/bold]" in plain


def test_a_pipe_gets_whole_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout + done.stderr
    assert lines[0] == "proponents" and all(line == line.rstrip() for line in lines)
    assert any(len(line) > 160 for line in lines) and done.stderr == "lorif: error: a [bold]sentence[/bold]\n"
