"""What commands print: text and tables on stdout, errors on stderr; colours and wrapping only on a terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_NO_TERMINAL_WIDTH = 10_000  # a file or a pipe gets whole lines


def write_text(text: "RenderableType") -> None:
    """Print the result of a command: lines as they are, and what rich lays out in the width of the terminal."""
    if isinstance(text, str):
        sys.stdout.write(text + "\n")
    else:
        console = _console(sys.stdout)
        with console.capture() as captured:
            console.print(text)
        # a table fills its last column with spaces
        sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))
    sys.stdout.flush()


def write_error(message: str) -> None:
    """Print an error as one line on stderr."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"lorif: error: {message}\n")
        return
    from rich.text import Text  # takes a tenth of a second

    _console(sys.stderr).print(Text.assemble(("lorif: error:", "bold red"), f" {message}"), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> "Table":
    """Rows under headings; the columns named in `numbers` are aligned to the right and never wrapped."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name in numbers
        drawn.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _console(file: TextIO) -> "Console":
    """A console that obeys NO_COLOR and TERM; what it prints is text, not markup."""
    from rich.console import Console

    width = None if file.isatty() else _NO_TERMINAL_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)
